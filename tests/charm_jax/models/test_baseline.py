import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charm_jax.models.backbones.efficientnet_v2 import ConvNormAct, Stage, Trunk
from charm_jax.models.baseline import Baseline

STAGES = (Stage(True, 1, 2, 8, 1),)  # small: quick to compile


@pytest.fixture(scope="module")
def network():
    return Baseline(Trunk(8, STAGES, drop_rate=0.0), ConvNormAct(16, 1), nn.relu, 3)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (4, 32, 32, 3))


@pytest.fixture(scope="module")
def variables(network, images):
    return jax.jit(lambda key: network.init(key, images, method="initialise"))(jax.random.key(0))


def test_logits_are_the_classifier_of_the_pooled_features(network, variables, images):
    output = network.apply(variables, images, None, None, None, train=False)
    classifier = variables["params"]["classifier"]
    pooled = np.maximum(np.asarray(output.main), 0).mean((1, 2))
    expected = pooled @ np.asarray(classifier["kernel"]) + np.asarray(classifier["bias"])
    np.testing.assert_allclose(output.logits, expected, rtol=1e-5, atol=1e-6)
    assert (output.evidence(), output.scalars()) == ({}, {})
    assert (output.memory, output.momentum) == (None, None)


def test_classify_gives_the_logits_of_the_features(network, variables, images):
    output = network.apply(variables, images, None, None, None, train=False)
    again = network.apply(variables, output.main, None, None, None, method="classify")
    np.testing.assert_allclose(again, output.logits, rtol=1e-6, atol=1e-7)


def test_a_frozen_trunk_keeps_its_statistics(network, variables, images):
    frozen = network.clone(freeze_trunk=True)
    _, updated = frozen.apply(
        variables, images, None, None, None, train=True, mutable=["batch_stats"]
    )
    before, after = variables["batch_stats"], updated["batch_stats"]
    chex.assert_trees_all_equal(after["trunk"], before["trunk"])
    assert float(jnp.abs(after["expansion"]["1"]["mean"]).max()) > 0
