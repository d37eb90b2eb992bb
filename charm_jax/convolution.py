"""Convolutions as torch pads them, in the form that is fast on the backend that runs them."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_LARGEST_BY_TAPS = 5
_SMALL_MAP = 9  # pixels

# torch's default for convolutions and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# torchvision's for the convolutions of its backbones: N(0, 2/fan_out), groups not divided out.
backbone_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# N(0, 2/fan_in), where a kernel of a depthwise convolution has k² inputs.
fan_in_kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


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
        dilation: distance between the pixels that a depthwise kernel reads; dense ones have 1.
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
    kernel_init: Callable[..., Array] = backbone_kernel_init
    bias_init: Callable[..., Array] | None = None
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
            y = depthwise_conv(x, kernel, self.strides, self.dilation)
        elif self.kernel_size == 1:
            y = pointwise(x[:, :: self.strides, :: self.strides], kernel[0, 0])
        else:
            y = dense_conv(x, kernel, self.strides)
        if self.use_bias:
            init = self.bias_init or torch_bias_init(kernel[..., 0].size)
            bias = self.param("bias", init, (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


@jax.custom_vjp
def pointwise(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "channels features"]
) -> Float[Array, "batch height width features"]:
    """Convolution 1x1: a matrix product.

    JAX's own gradient of the kernel is the transpose of ``gradᵀ x``, for which XLA on a CPU turns
    the whole gradient over in memory, at several times the cost of the product; here it is
    ``xᵀ grad``, which needs no turning and is the same to the bit but for the order of summation.
    """
    return x @ kernel


def _pointwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _pointwise_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return grad @ kernel.T, _product_over_pixels(x, grad)


def _product_over_pixels(x: Array, grad: Array) -> Array:
    """``Σ x ⊗ grad`` over batch and space. Flat first: XLA turns operands of rank 4 over."""
    flat = (v.reshape(-1, v.shape[-1]) for v in (x, grad))
    return lax.dot_general(*flat, (((0,), (0,)), ((), ())))


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def dense_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "k k channels features"],
    strides: int,
) -> Float[Array, "batch new_height new_width features"]:
    """Convolution over all channels, padded by k // 2 on every side.

    On CPU the gradient of the kernel is computed as one matrix product a tap, because XLA's own
    form is about twice as slow there, except for large kernels, which are those of stems with few
    channels; where the output has few pixels, XLA's is 30 times as slow in all directions, and each
    is computed so. The result is the same up to the order of summation.
    """
    if kernel.shape[0] > _LARGEST_BY_TAPS:
        return _native(x, kernel, strides, groups=1)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_dense_on_cpu, strides=strides),
        default=partial(_native, strides=strides, groups=1),
    )


def depthwise_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "k k 1 channels"],
    strides: int,
    dilation: int = 1,
) -> Float[Array, "batch new_height new_width channels"]:
    """One kernel a channel, padded by dilation · (k // 2) on every side.

    On CPU it is a sum of shifted products: XLA's grouped convolution is 20 to 300 times slower
    there, forward and backward; the result is the same up to the order of summation.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_depthwise_by_taps, strides=strides, dilation=dilation),
        default=partial(_native, strides=strides, groups=x.shape[-1], dilation=dilation),
    )


def _native(x: Array, kernel: Array, strides: int, groups: int, dilation: int = 1) -> Array:
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(pad, pad), (pad, pad)],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _live_taps(shape: tuple[int, ...], size: int, dilation: int = 1) -> list[tuple[int, int]]:
    """Row and column of what in a kernel can read more than padding, in row-major order.

    Of a dilated kernel on a small map that is the lesser part.
    """
    reach = size // 2
    rows, columns = (
        [i for i in range(size) if dilation * abs(i - reach) < side] for side in shape[1:3]
    )
    return [(i, j) for i in rows for j in columns]


def _taps(x: Array, size: int, strides: int, dilation: int = 1) -> dict[tuple[int, int], Array]:
    """The shifted views of the padded ``x`` by the kernel's row and column."""
    pad = dilation * (size // 2)
    height, width = -(-x.shape[1] // strides), -(-x.shape[2] // strides)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def window(start: int, length: int) -> slice:
        return slice(start, start + strides * (length - 1) + 1, strides)

    return {
        (i, j): padded[:, window(dilation * i, height), window(dilation * j, width)]
        for i, j in _live_taps(x.shape, size, dilation)
    }


def _kernel_of(parts: dict[tuple[int, int], Array], kernel: Array) -> Array:
    """Puts the parts where they belong in an array like ``kernel``; the rest is zero."""
    unread = jnp.zeros(kernel.shape[2:], kernel.dtype)
    rows = [parts.get(at, unread) for at in np.ndindex(kernel.shape[:2])]
    return jnp.stack(rows).reshape(kernel.shape)


def _sum_of_taps(x: Array, kernel: Array, strides: int, dilation: int) -> Array:
    taps = _taps(x, kernel.shape[0], strides, dilation)
    products = [tap * kernel[at].reshape(1, 1, 1, -1) for at, tap in taps.items()]
    return sum(products[1:], start=products[0])


def _sum_of_shifts(x: Array, kernel: Array, dilation: int) -> Array:
    """The same for strides of 1: products are shifted rather than pixels, in one pass over ``x``.

    It needs no padded copy and takes half the time, but only on its own: with an exponential fused
    to it (a SiLU after it in evaluation, or before it in the backward pass) XLA does not vectorise
    the loop, and it takes four times as long.
    """
    reach = kernel.shape[0] // 2
    total = jnp.zeros((), x.dtype)
    for i, j in _live_taps(x.shape, kernel.shape[0], dilation):
        down, right = dilation * (reach - i), dilation * (reach - j)
        product = x * kernel[i, j].reshape(1, 1, 1, -1)
        shifts = ((0, 0, 0), (down, -down, 0), (right, -right, 0), (0, 0, 0))
        total = total + lax.pad(product, jnp.zeros((), x.dtype), shifts)
    return total


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_by_taps(x: Array, kernel: Array, strides: int, dilation: int) -> Array:
    return _sum_of_taps(x, kernel, strides, dilation)


def _depthwise_forward(
    x: Array, kernel: Array, strides: int, dilation: int
) -> tuple[Array, tuple[Array, Array]]:
    # Only in training does it come here, where batch statistics are taken of it next.
    if strides == 1:
        return _sum_of_shifts(x, kernel, dilation), (x, kernel)
    return _sum_of_taps(x, kernel, strides, dilation), (x, kernel)


def _depthwise_backward(
    strides: int, dilation: int, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    if strides == 1:
        grad_x = _sum_of_taps(grad, kernel[::-1, ::-1], strides, dilation)
    else:
        of_x = partial(_sum_of_taps, kernel=kernel, strides=strides, dilation=dilation)
        (grad_x,) = jax.linear_transpose(of_x, x)(grad)

    # Image after image, the sums stay in whole vectors; reductions take up to 5 times as long.
    def add(sums: dict, image: tuple[Array, Array]) -> tuple[dict, None]:
        pixels, grad_of_image = image
        taps = _taps(pixels[None], kernel.shape[0], strides, dilation)
        return {at: sums[at] + tap[0] * grad_of_image for at, tap in taps.items()}, None

    def of_kernel(x: Array, grad: Array) -> dict[tuple[int, int], Array]:
        live = _live_taps(x.shape, kernel.shape[0], dilation)
        zeros = {at: jnp.zeros(grad.shape[1:], grad.dtype) for at in live}
        sums, _ = lax.scan(add, zeros, (x, grad))
        return {at: value.sum((0, 1))[None] for at, value in sums.items()}

    return grad_x, _kernel_of(_over_devices(of_kernel)(x, grad), kernel)


def _over_devices(sums: Callable) -> Callable:
    """Sums over the images of a batch, device by device where a mesh divides it.

    One scan over all of them would bring every image to every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return sums
    axes = mesh.axis_names
    return jax.shard_map(
        lambda *batch: lax.psum(sums(*batch), axes),
        in_specs=PartitionSpec(axes),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


_depthwise_by_taps.defvjp(_depthwise_forward, _depthwise_backward)


def _dense_on_cpu(x: Array, kernel: Array, strides: int) -> Array:
    if -(-x.shape[1] // strides) * -(-x.shape[2] // strides) > _SMALL_MAP:
        return _dense_by_taps(x, kernel, strides)
    products = [tap @ kernel[at] for at, tap in _taps(x, kernel.shape[0], strides).items()]
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
    taps = _taps(x, kernel.shape[0], strides).items()
    products = {at: tap.reshape(-1, tap.shape[-1]).T @ flat for at, tap in taps}
    return grad_x, _kernel_of(products, kernel)


_dense_by_taps.defvjp(_dense_forward, _dense_backward)
