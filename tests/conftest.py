"""What every test runs under: shapes checked at run time, no silent rank promotion."""

import os

import hypothesis
import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook(("charm_jax", "data_pipelines"), "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")
# How long an example takes says nothing here: others may share the machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    if any(device.platform == "gpu" for device in jax.devices()):
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _away_from_home(monkeypatch, tmp_path):
    """A test neither reads nor writes the folder that it was started in."""
    monkeypatch.chdir(tmp_path)
    os.environ.pop("CHARM_DATA", None)
