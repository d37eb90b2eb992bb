"""Define batch normalisation with torch's running statistics and an activation after it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Activation(NamedTuple):
    """Hold a function of z and its pullback, from z and the gradient of its value."""

    value: Callable[[Array], Array]
    pullback: Callable[[Array, Array], Array]


def _silu_pullback(z: Array, grad: Array) -> Array:
    sigmoid = nn.sigmoid(z)
    return grad * sigmoid * (1 + z * (1 - sigmoid))


ACTIVATIONS = {
    "silu": Activation(nn.silu, _silu_pullback),
    "relu6": Activation(nn.relu6, lambda z, grad: jnp.where((z > 0) & (z < 6), grad, 0)),
}


class BatchNorm(nn.Module):
    """Normalise over all axes but the last.

    While training it normalises with the batch's own (biased) variance; the running variance takes
    the unbiased one, n/(n-1) times as large. Statistics are computed in float32,
    or in float64 where ``x`` is.

    Source: torch.nn.BatchNorm2d with momentum 0.1, which is a decay of 0.9 here.
    Differs: ``flax.linen.BatchNorm`` keeps the biased variance.

    Attributes:
        epsilon: added to the variance; 1e-5 in torch, 1e-3 in EfficientNetV2.
        decay: share of the old running statistics that a step keeps.
        activation: key of ``ACTIVATIONS`` that follows; empty for none.
        dtype: type of the result; parameters and statistics are float32.
    """

    epsilon: float = 1e-5
    decay: float = 0.9
    activation: str = ""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "... channels"], *, train: bool
    ) -> Float[Array, "... channels"]:
        """Normalise ``x``; with ``train`` the collection ``batch_stats`` must be mutable."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not train:
            mean, var = running_mean.value, running_var.value
            return _normalised(x, scale, bias, mean, var, self.epsilon, self.activation, self.dtype)
        y, mean, var = _batch_norm(x, scale, bias, self.epsilon, self.activation, self.dtype)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self.decay * running_mean.value + (1 - self.decay) * mean
            running_var.value = self.decay * running_var.value + (1 - self.decay) * unbiased
        return y


def at_least_float32(x: Array) -> Array:
    """Return ``x`` as float32, or as float64 where that is its type."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _line_up(values: Array, x: Array) -> Array:
    """Reshape one value a channel to broadcast against ``x``."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _affine(x: Array, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float) -> Array:
    factor = scale / jnp.sqrt(var + epsilon)
    return at_least_float32(x) * _line_up(factor, x) + _line_up(bias - mean * factor, x)


def _normalised(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    epsilon: float,
    activation: str,
    dtype: DTypeLike,
) -> Array:
    z = _affine(x, scale, bias, mean, var, epsilon)
    return (ACTIVATIONS[activation].value(z) if activation else z).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, activation: str, dtype: DTypeLike
) -> tuple[Array, Array, Array]:
    """Return normalised ``x``, mean and variance; no gradient passes through the last two."""
    mean, var = _moments(x)
    return _normalised(x, scale, bias, mean, var, epsilon, activation, dtype), mean, var


def _moments(x: Array) -> tuple[Array, Array]:
    """Compute mean and biased variance of each channel in one read of ``x``.

    Several devices exchange one array: each takes the moments of its share of the batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shares = 1 if mesh.empty or len(x) % mesh.size else mesh.size
    pixels = at_least_float32(x).reshape(shares, -1, *x.shape[1:])
    # Not E[x²] - E[x]²: it cancels where features share a large mean, as before the head. The first
    # image's mean is near enough to that of all.
    axes = tuple(range(1, x.ndim))
    near = pixels[:, :1].mean(axes, keepdims=True)
    means, squares = (v.mean(axes) for v in (pixels - near, jnp.square(pixels - near)))
    variances, means = squares - jnp.square(means), means + near.reshape(means.shape)
    if shares > 1:
        both = jnp.concatenate([means, variances], axis=1)
        both = lax.with_sharding_constraint(both, PartitionSpec())
        means, variances = jnp.split(both, 2, axis=1)
    mean = means.mean(0)
    between = jnp.square(means - mean.reshape(1, -1)).mean(0)
    return mean, jnp.maximum(variances.mean(0) + between, 0.0)


def _forward(
    x: Array, scale: Array, bias: Array, epsilon: float, activation: str, dtype: DTypeLike
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, var = _batch_norm(x, scale, bias, epsilon, activation, dtype)
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(
    epsilon: float,
    activation: str,
    dtype: DTypeLike,
    residuals: tuple[Array, ...],
    grads: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    # The barrier makes XLA compute the activation again from ``x`` rather than keep it and z from
    # the forward pass: that takes less memory, and on a CPU less time.
    (x, scale, bias, mean, var), given = lax.optimization_barrier((residuals, grads[0]))
    axes, inverse = tuple(range(x.ndim - 1)), 1 / jnp.sqrt(var + epsilon)

    def at_output(x: Array, grad: Array) -> tuple[Array, Array, Array]:
        """Return pixels, normalised pixels and the gradient of what they are scaled to."""
        pixels, grad = at_least_float32(x), at_least_float32(grad)
        if activation:
            z = _affine(x, scale, bias, mean, var, epsilon)
            grad = ACTIVATIONS[activation].pullback(z, grad)
        return pixels, (pixels - _line_up(mean, x)) * _line_up(inverse, x), grad

    pixels, unit, grad = at_output(x, given)
    grad_bias = grad.sum(axes)
    if x.ndim == 2:
        grad_scale = (grad * unit).sum(axes)
    else:
        # For maps the mean leaves the sum, else XLA writes a centred copy. Vectors, as before the
        # head, may share a mean so large that this difference would cancel.
        grad_scale = ((grad * pixels).sum(axes) - mean * grad_bias) * inverse
    if activation and x.dtype == jnp.bfloat16:
        # Computed again: kept from the sums, this gradient would be twice as wide as its inputs.
        x, given = lax.optimization_barrier((x, given))
        _, unit, grad = at_output(x, given)
    count = x.size // x.shape[-1]
    through = grad - _line_up(grad_bias / count, x) - unit * _line_up(grad_scale / count, x)
    grad_x = through * _line_up(scale * inverse, x)
    return grad_x.astype(x.dtype), grad_scale, grad_bias


_batch_norm.defvjp(_forward, _backward)
