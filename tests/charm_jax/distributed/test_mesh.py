"""The same results on several devices, forced on a CPU, as on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from charm_jax.distributed import mesh

BATCH, SIDE = 8, 32
HERE = Path(__file__).parents[2] / "support"


pytestmark = pytest.mark.daily


@pytest.fixture(scope="module")
def runs():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "on_devices.py"],
        cwd=HERE,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("count", ["4", "8", "2 resident", "vote 4"])
def test_several_devices_train_as_one_does(runs, count):
    one, several = runs["vote 1" if count.startswith("vote") else "1"], runs[count]
    # The softmax of a vote has a temperature of 0.1, which takes rounding up tenfold.
    tolerance = 1e-4 if count.startswith("vote") else 1e-5
    for alone, together in zip(one["metrics"], several["metrics"], strict=True):
        assert alone.keys() == together.keys()
        assert abs(alone["loss"] - together["loss"]) < tolerance
        np.testing.assert_allclose(
            list(together.values()), list(alone.values()), rtol=1e-3, atol=1e-5
        )
    assert several["bank"] == one["bank"]
    for what in ("stored", "variances", "logits"):
        np.testing.assert_allclose(several[what], one[what], rtol=1e-3, atol=1e-4)


def test_the_losses_move(runs):
    losses = [values["loss"] for values in runs["1"]["metrics"]]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("count", ["4", "8", "2 resident", "vote 4"])
def test_images_and_features_stay_on_their_device(runs, count):
    """What devices tell each other has no more numbers than a batch of vectors."""
    assert runs[count]["gathered"]
    for shape in runs[count]["gathered"]:
        kind, sides = shape.rstrip("]").split("[")
        assert kind != "u8", shape
        sides = [int(side) for side in sides.split(",") if side]
        assert len(sides) <= 2, shape


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_convolutions_gradients_are_the_same_and_gather_nothing(runs, layer):
    one, several = (runs["convolutions"][count][layer] for count in ("1", "8"))
    for alone, together in zip(one["gradients"], several["gradients"], strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert several["gathered"] == []


def test_a_single_device_needs_no_mesh():
    assert jax.device_count() == 1
    assert mesh.mesh() is None
    tree = {"a": np.arange(3.0), "key": jax.random.key(0)}
    placed = mesh.replicated(tree, None)
    np.testing.assert_array_equal(placed["a"], tree["a"])
