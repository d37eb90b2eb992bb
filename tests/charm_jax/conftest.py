import collections
import logging
import os
import pickle
import shutil

import jax
import pytest
from filelock import FileLock
from running import command, train

from charm_jax.config.cli import guarded


@pytest.fixture(autouse=True)
def _logger_as_in_a_library():
    """A command that ran in this process leaves the logger as a library's user finds it."""
    yield
    logger = logging.getLogger("charm_jax")
    logger.handlers.clear()
    logger.propagate = True


@pytest.fixture
def traces():
    """How often JAX has traced each function `f` since, and lowered `jit(f)`, by name."""
    counts = collections.Counter()
    phases = [
        f"/jax/core/compile/{name}_duration" for name in ("jaxpr_trace", "jaxpr_to_mlir_module")
    ]

    def count(event, seconds, **facts):
        counts[facts.get("fun_name")] += event in phases

    jax.monitoring.register_event_duration_secs_listener(count)
    yield counts
    jax.monitoring.unregister_event_duration_listener(count)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with the run `demo`, trained and evaluated once; each worker has its own copy."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "finished"
    outputs = root / "finished.pickle"
    with FileLock(root / "finished.lock"):
        if not outputs.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a failed attempt
            folder.mkdir()
            trained = train(cwd=folder)
            assert trained.returncode == 0, trained.stderr
            evaluated = command("eval", cwd=folder)
            assert evaluated.returncode == 0, evaluated.stderr
            outputs.write_bytes(pickle.dumps((trained, evaluated)))
    copy = tmp_path_factory.mktemp("worker") / "finished"
    shutil.copytree(folder, copy)
    yield copy, *pickle.loads(outputs.read_bytes())
    # The last run that was written is the one that a command without --run takes, and tests look
    # for the evaluation on other data that they made.
    assert [path.name for path in (copy / "runs").iterdir()] == ["demo"]
    assert not list((copy / "runs/demo/eval").glob("*-*"))


@pytest.fixture
def refused(capfd, monkeypatch):
    """Asserts that a command leaves with code 2 and one sentence that has all the words."""

    def check(main, arguments, *words, cwd):
        monkeypatch.chdir(cwd)
        assert guarded(main, arguments) == 2
        message = capfd.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("error: ")
        for word in words:
            assert word in message, message

    return check
