"""Define multi-scale spatial attention."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charm_jax.models.layers.batch_norm import at_least_float32
from charm_jax.models.layers.conv import Conv, torch_kernel_init
from charm_jax.models.shapes import Features


class MultiScaleAttention(nn.Module):
    """Compute one attention map over space from convolutions of three sizes.

    a = sigmoid(conv1x1([conv1x1(f) | conv3x3(f) | conv5x5(f)])), each branch max(D // 8, 8)
    channels wide.

    Source: the reference's ``MultiScaleAttention``.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "batch height width 1"]:
        """Return the map in float32, each value in (0, 1)."""
        conv = partial(Conv, use_bias=True, kernel_init=torch_kernel_init, dtype=self.dtype)
        width = max(features.shape[-1] // 8, 8)
        branches = [conv(width, size, name=f"conv{size}")(features) for size in (1, 3, 5)]
        # Keeps slices of the gradient out of products, for which XLA on a GPU finds no tiles.
        branches = lax.optimization_barrier(branches)
        merged = conv(1, 1, name="merge")(jnp.concatenate(branches, axis=-1))
        return nn.sigmoid(at_least_float32(merged))


class ResidualAttention(nn.Module):
    """Compute weights of mean 1 over space: 1 + s (a - mean a), with s learned from 0.

    Differs: the reference weights by a itself, which also scales the features down.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "batch height width 1"]:
        """Return the weights in float32."""
        attention = MultiScaleAttention(self.dtype, name="attention")(features)
        scale = self.param("scale", nn.initializers.zeros, ())
        return 1 + scale * (attention - attention.mean((1, 2), keepdims=True))
