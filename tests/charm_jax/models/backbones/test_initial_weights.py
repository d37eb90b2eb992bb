"""The random weights of every family follow torchvision's rules."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from charm_jax.models.backbones import BACKBONES

# Which fan divides the variance of a convolution's normal draws: torchvision's for the family.
FANS = {
    "efficientnet_v2_nano": "out",  # stands for its larger members, which have the same blocks
    "efficientnet_lite0": "out",
    "resnet50": "out",
    "densenet121": "in",
    "vgg16_lka": "out",
}
# Drawn as in the attention's paper, where a depthwise output has as many inputs as outputs.
ATTENTION = ("dw_conv1", "dw_conv2", "pw_conv")


def initial(arch):
    """Parameters and statistics of trunk and expansion block by path."""
    backbone = BACKBONES[arch]
    trunk, expansion = backbone.trunk(drop_rate=0.0), backbone.expansion()

    def create(key):
        images = jnp.zeros((1, 32, 32, 3))
        features, of_trunk = trunk.init_with_output(key, images, train=False)
        of_expansion = expansion.init(jax.random.fold_in(key, 1), features, train=False)
        parts = {"trunk": of_trunk, "expansion": of_expansion}
        # Without the features, so that nothing is convolved.
        return {part: {k: v[k] for k in ("params", "batch_stats")} for part, v in parts.items()}

    options = {"xla_backend_optimization_level": 0}  # it runs once
    variables = jax.jit(create, compiler_options=options)(jax.random.key(0))
    return flatten_dict(jax.device_get(variables))


@pytest.mark.parametrize("arch", FANS)
def test_random_weights_are_drawn_as_torchvisions(arch):
    for path, value in initial(arch).items():
        if path[-1] != "kernel":  # norms, and biases of convolutions
            constant = 1.0 if path[-1] in ("scale", "var") else 0.0
            np.testing.assert_array_equal(value, np.full(value.shape, constant), err_msg=str(path))
            continue
        side, _, channels, features = value.shape
        fan = channels if FANS[arch] == "in" or path[-2] in ATTENTION else features
        unit = value / np.sqrt(2 / (side**2 * fan))
        # Five standard errors of each moment of that many normal draws.
        error = 5 / np.sqrt(value.size)
        assert abs(unit.mean()) < error, path
        assert abs(np.square(unit).mean() - 1) < error * np.sqrt(2), path
        assert abs((unit**4).mean() - 3) < error * np.sqrt(96), path


def test_every_family_is_checked():
    families = [{re.split(r"_v2|\d$", name)[0] for name in names} for names in (BACKBONES, FANS)]
    assert families[0] == families[1]
