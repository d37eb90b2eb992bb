"""Weights that were trained on inputs of another range are told by their running statistics."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from weight_states import NANO

import charm_jax
from charm_jax.config import recipe, settings
from charm_jax.inference import input_check
from charm_jax.models.create import create_network

KEYS = settings.from_dict(recipe.defaults().to_dict()).model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return charm_jax.load_dataset(
        "phantom", tmp_path_factory.mktemp("set"), image_size=32, train_images=420, test_images=310
    )


def trained_on(data, input_range, channels):
    """A network whose first batch norm has the statistics of these images in a range."""
    network = create_network(NANO, num_classes=14, charm=False)
    _, state = charm_jax.create_model(NANO, charm=False, image_size=32, in_chans=channels)
    [batch] = input_check.loader.evaluation_batches(
        data.table, np.arange(100, 164), image_size=32, batch_size=64
    )
    images = input_check.augment.evaluation_images(
        jnp.asarray(batch["image"]), channels, input_range
    )
    trunk = {"params": state.params["trunk"], "batch_stats": state.batch_stats["trunk"]}
    path, x, _ = input_check._first_batch_norm(network.trunk, trunk, images)
    node = state.batch_stats["trunk"]
    for name in path:
        node = node[name]
    node["mean"], node["var"] = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return network, state


def check(data, trained, given, channels=3):
    network, state = trained_on(data, trained, channels)
    keys = dataclasses.replace(KEYS, input_range=given, channels=channels)
    return input_check.check_inputs(network, state, data, np.arange(64), keys)


@pytest.mark.parametrize("input_range", ["imagenet", "unit", "xrv", "-1,1", "0,255", "1,0"])
def test_the_range_of_training_passes(data, input_range):
    assert check(data, input_range, input_range) == []


@pytest.mark.parametrize(
    ("trained", "given", "channels", "advice"),
    [
        ("xrv", "imagenet", 1, "--config.model.input_range=xrv fits (1"),
        ("imagenet", "xrv", 3, "--config.model.input_range=imagenet fits (1"),
        ("imagenet", "unit", 3, "--config.model.input_range=imagenet fits (1"),
        ("0,255", "unit", 1, "--config.model.input_range=0,255 fits (1"),
        ("0,4095", "unit", 1, "set --config.model.input_range to that of its training."),
    ],
)
def test_another_range_is_said_with_numbers(data, trained, given, channels, advice):
    (sentence,) = check(data, trained, given, channels)
    assert sentence.startswith("warning: these weights were trained on inputs of another range")
    assert f"than {given}: at the first batch norm 32 images have 0" in sentence or given == "xrv"
    assert "times the spread of its running statistics" in sentence
    assert advice in sentence


def test_what_was_never_trained_is_not_judged(data):
    network = create_network(NANO, num_classes=14, charm=False)
    _, state = charm_jax.create_model(NANO, charm=False, image_size=32)
    keys = dataclasses.replace(KEYS, input_range="xrv")
    assert input_check.check_inputs(network, state, data, np.arange(64), keys) == []
    assert input_check.check_inputs(network, state, data, np.arange(0), keys) == []
