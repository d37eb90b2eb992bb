"""Convolutions as torch pads them, in the form that is fast on the backend that runs them."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# torch's default for convolutions and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# torchvision's for the convolutions of its backbones: N(0, 2/fan_out), groups not divided out.
backbone_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_bias_init(fan_in: int) -> Callable[..., Array]:
    """The default of torch for the biases of convolutions and linear layers: U(±1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """2-D convolution with torch's symmetric padding (not 'SAME', which differs at stride 2).

    Attributes:
        features: output channels.
        kernel_size: side of the square kernel, odd.
        strides: step in both directions.
        depthwise: one kernel a channel; ``features`` must equal the input's channels.
        use_bias: whether a bias is added.
        kernel_init: initialiser of the kernel ``[k, k, in, out]`` (depthwise ``[k, k, 1, out]``).
        dtype: type that it computes in; parameters are float32.
    """

    features: int
    kernel_size: int
    strides: int = 1
    depthwise: bool = False
    use_bias: bool = False
    kernel_init: Callable[..., Array] = backbone_kernel_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        """Convolves ``x``; the output's sides are ceil(side / strides)."""
        channels = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.depthwise:
            y = depthwise_conv(x, kernel, self.strides)
        elif self.kernel_size == 1:
            y = x[:, :: self.strides, :: self.strides] @ kernel[0, 0]
        else:
            y = dense_conv(x, kernel, self.strides)
        if self.use_bias:
            bias = self.param("bias", torch_bias_init(kernel[..., 0].size), (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


def dense_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "k k channels features"],
    strides: int,
) -> Float[Array, "batch new_height new_width features"]:
    """Convolution over all channels, padded by k // 2 on every side.

    On CPU the gradient of the kernel is computed as one matrix product a tap, because XLA's own
    form is about twice as slow there; the result is the same up to the order of summation.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_dense_by_taps, strides=strides),
        default=partial(_native, strides=strides, groups=1),
    )


def depthwise_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "k k 1 channels"],
    strides: int,
) -> Float[Array, "batch new_height new_width channels"]:
    """One kernel a channel, padded by k // 2 on every side.

    On CPU it is a sum of shifted products: XLA's grouped convolution is 20 to 300 times slower
    there, forward and backward; the result is the same up to the order of summation.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_depthwise_by_taps, strides=strides),
        default=partial(_native, strides=strides, groups=x.shape[-1]),
    )


def _native(x: Array, kernel: Array, strides: int, groups: int) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(pad, pad), (pad, pad)],
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _taps(x: Array, size: int, strides: int) -> list[Array]:
    """The size² shifted views of the padded ``x``, in the row-major order of the kernel."""
    pad = size // 2
    height, width = -(-x.shape[1] // strides), -(-x.shape[2] // strides)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return [
        padded[
            :,
            i : i + strides * (height - 1) + 1 : strides,
            j : j + strides * (width - 1) + 1 : strides,
        ]
        for i in range(size)
        for j in range(size)
    ]


def _depthwise_by_taps(x: Array, kernel: Array, strides: int) -> Array:
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    products = [tap * w for tap, w in zip(_taps(x, kernel.shape[0], strides), weights, strict=True)]
    return sum(products[1:], start=products[0])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense_by_taps(x: Array, kernel: Array, strides: int) -> Array:
    return _native(x, kernel, strides, groups=1)


def _dense_forward(x: Array, kernel: Array, strides: int) -> tuple[Array, tuple[Array, Array]]:
    return _native(x, kernel, strides, groups=1), (x, kernel)


def _dense_backward(
    strides: int, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    (grad_x,) = jax.linear_transpose(lambda v: _native(v, kernel, strides, groups=1), x)(grad)
    flat = grad.reshape(-1, grad.shape[-1])
    taps = [t.reshape(-1, t.shape[-1]).T @ flat for t in _taps(x, kernel.shape[0], strides)]
    return grad_x, jnp.stack(taps).reshape(kernel.shape)


_dense_by_taps.defvjp(_dense_forward, _dense_backward)
