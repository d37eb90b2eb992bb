"""Max pooling with padding, in a form that converters to other formats know, too."""

import flax.linen as nn
import jax.numpy as jnp

from charm_jax.models.layers.conv import uses_plain_forms
from charm_jax.models.shapes import Maps, NewMaps


def max_pool(x: Maps) -> NewMaps:
    """Pool windows of 3x3 with a stride of 2; the sides become ceil(side / 2).

    Source: PyTorch's ``MaxPool2d(3, stride=2, padding=1)``.
    """
    padding = ((1, 1), (1, 1))
    if uses_plain_forms():  # jax2onnx 0.13 leaves out the padding of a pool
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
        padding = "VALID"
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=padding)
