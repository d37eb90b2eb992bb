"""Define convolutions with torch's padding, in the form that is fast on each backend."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from charm_jax.models.layers import conv_cpu as forms
from charm_jax.models.layers.batch_norm import at_least_float32
from charm_jax.models.shapes import Maps, NewMaps, SameSizeMaps

_LARGEST_BY_TAPS = 5
_plain = contextvars.ContextVar("plain", default=False)

# torch's default for convolutions and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# torchvision's for the convolutions of its backbones: N(0, 2/fan_out), groups not divided out.
backbone_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# N(0, 2/fan_in), where a kernel of a depthwise convolution has k² inputs.
fan_in_kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def torch_bias_init(fan_in: int) -> Callable[..., Array]:
    """Return torch's default for biases of convolutions and linear layers: U(±1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """Convolve with torch's symmetric padding, or with TensorFlow's.

    Attributes:
        kernel_size: side of the square kernel, odd.
        depthwise: whether each channel has its own kernel; ``features`` must equal the input's
            channels.
        dilation: distance between the pixels that a depthwise kernel reads; dense kernels have 1.
        same: whether the padding is TensorFlow's "SAME", which differs where strides of 2 divide a
            side: windows lie one pixel further down or right.
        kernel_init: initialiser of the kernel ``[k, k, in, out]`` (depthwise ``[k, k, 1, out]``).
        bias_init: initialiser of the bias; torch's default if None.
        dtype: type that it computes in; parameters are float32.
    """

    features: int
    kernel_size: int
    strides: int = 1
    depthwise: bool = False
    use_bias: bool = False
    dilation: int = 1
    same: bool = False
    kernel_init: Callable[..., Array] = backbone_kernel_init
    bias_init: Callable[..., Array] | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps) -> NewMaps:
        """Convolve ``x``; the output's sides are ceil(side / strides)."""
        channels = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = x.astype(self.dtype)
        shift = tuple(self._shift(side) if self.same else 0 for side in x.shape[1:3])
        if self.depthwise:
            y = depthwise_conv(x, kernel.astype(self.dtype), self.strides, self.dilation, shift)
        elif self.kernel_size == 1:
            x = x[:, :: self.strides, :: self.strides]
            kernel = kernel[0, 0]
            y = x @ kernel.astype(x.dtype) if uses_plain_forms() else pointwise(x, kernel)
        else:
            y = dense_conv(x, kernel.astype(self.dtype), self.strides, shift)
        if self.use_bias:
            init = self.bias_init or torch_bias_init(kernel[..., 0].size)
            bias = self.param("bias", init, (self.features,))
            # In float32, in which its gradient then is summed.
            y = (at_least_float32(y) + bias.reshape(1, 1, 1, -1)).astype(self.dtype)
        return y

    def _shift(self, side: int) -> int:
        """Return how much less "SAME" pads before the first pixel than torch."""
        total = max(self.kernel_size - (side % self.strides or self.strides), 0)
        return self.kernel_size // 2 - total // 2


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Trace convolutions and pools as single operations without a gradient of their own.

    Converters to other formats know these.
    """
    before = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(before)


def uses_plain_forms() -> bool:
    """Return whether operations are traced within ``plain_forms``."""
    return _plain.get()


@jax.custom_vjp
def pointwise(x: Maps, kernel: Float[Array, "channels features"]) -> SameSizeMaps:
    """Convolve 1x1: a matrix product in the type of ``x``; the kernel and its gradient keep theirs.

    JAX's own gradient of the kernel is the transpose of ``gradᵀ x``, for which XLA on a CPU
    transposes the whole gradient in memory, at several times the cost of the product; here it is
    ``xᵀ grad``, equal up to the order of summation.
    """
    return x @ kernel.astype(x.dtype)


def _pointwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return pointwise(x, kernel), (x, kernel)


def _pointwise_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    of_kernel = forms.product_over_pixels(x, grad, kernel.dtype)
    return grad @ kernel.T.astype(x.dtype), of_kernel


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def dense_conv(
    x: Maps,
    kernel: Float[Array, "k k channels features"],
    strides: int,
    shift: forms.Shift = (0, 0),
) -> NewMaps:
    """Convolve over all channels, padded by k // 2 on every side, with windows moved by ``shift``.

    On CPU the result is the same up to the order of summation, in forms that are faster than
    XLA's. The gradient of a kernel (except large ones, those of stems with few channels) is one
    matrix product a tap, on large maps image by image: about twice as fast. Between very different
    numbers of channels, products are shifted instead of pixels. For outputs of few pixels all
    directions are matrix products: 30 times as fast.
    """
    native = partial(forms.native, strides=strides, groups=1, shift=shift)
    if _plain.get() or kernel.shape[0] > _LARGEST_BY_TAPS:
        return native(x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=partial(forms.dense, strides=strides, shift=shift), default=native
    )


def depthwise_conv(
    x: Maps,
    kernel: Float[Array, "k k 1 channels"],
    strides: int,
    dilation: int = 1,
    shift: forms.Shift = (0, 0),
) -> Float[Array, "batch new_height new_width channels"]:
    """Convolve each channel with its own kernel, padded by dilation · (k // 2) on every side.

    Windows are moved by ``shift``.
    On CPU it is a sum of shifted products, equal up to the order of summation: XLA's grouped
    convolution is 20 to 300 times slower there, forward and backward.
    """
    native = partial(
        forms.native, strides=strides, groups=x.shape[-1], dilation=dilation, shift=shift
    )
    if _plain.get():
        return native(x, kernel)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(forms.depthwise, strides=strides, dilation=dilation, shift=shift),
        default=native,
    )
