"""Batch normalisation that keeps torch's running statistics."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last.

    While training it normalises with the batch's own (biased) variance; the running variance takes
    the unbiased one, n/(n-1) times as large. Statistics are computed in float32 whatever the
    compute type.

    Source: torch.nn.BatchNorm2d with momentum 0.1, which is a decay of 0.9 here.
    Differs: ``flax.linen.BatchNorm`` keeps the biased variance.

    Attributes:
        epsilon: added to the variance; 1e-5 in torch, 1e-3 in EfficientNetV2.
        decay: share of the old running statistics that is kept in a step.
        dtype: type of the result; parameters and statistics are float32.
    """

    epsilon: float = 1e-5
    decay: float = 0.9
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "... channels"], *, train: bool
    ) -> Float[Array, "... channels"]:
        """Normalises ``x``; with ``train`` the collection ``batch_stats`` must be mutable."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(jnp.float32)
        ones = (1,) * (x.ndim - 1)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            # Not E[x²] - E[x]²: it cancels where features share a large mean, as before the head.
            var = jnp.square(x - mean.reshape(ones + channels)).mean(axes)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self.decay * running_mean.value + (1 - self.decay) * mean
                running_var.value = self.decay * running_var.value + (1 - self.decay) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale / jnp.sqrt(var + self.epsilon)
        y = x * factor.reshape(ones + channels) + (bias - mean * factor).reshape(ones + channels)
        return y.astype(self.dtype)
