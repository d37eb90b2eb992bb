"""Check shapes at run time, refuse silent rank promotion and compile each program once."""

import os
import signal
import tempfile

# Set before JAX is imported; commands that run as processes and pytest's workers inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="charm_jax_xla_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Programs that run a few times compile in two thirds of the time; .ci/run has those that do not.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# A shell starts background jobs with Ctrl-C ignored, which the commands under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Several processes share a GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import hypothesis
import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook(("charm_jax", "data_pipelines"), "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")
# How long an example takes says nothing here: others may share the machine. All runs draw the same
# examples, so that a failure belongs to a change; --hypothesis-profile=explore draws new ones.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("fixed")


def pytest_xdist_auto_num_workers(config):
    """Run all tests in two processes and a chosen few in this one, which starts sooner."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    return 2 if whole and not config.option.keyword else 0


def pytest_collection_modifyitems(items):
    if any(device.platform == "gpu" for device in jax.devices()):
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):  # keywords hold the names of folders, too
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _away_from_home(monkeypatch, tmp_path):
    """A test neither reads nor writes the folder that it was started in."""
    monkeypatch.chdir(tmp_path)
    os.environ.pop("CHARM_DATA", None)


@pytest.fixture(autouse=True)
def _signals_as_before():
    """A command that ran in this process leaves Ctrl-C to pytest."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
