"""The forms of a convolution, and of its gradients: XLA's own, and those that are fast on a CPU."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SMALL_MAP, _LARGE_MAP = 9, 1024  # pixels
_NARROWS = 8  # times as many channels as features, as in the fusion's convolutions
_WIDENS = 4  # times as many features as channels: the input's gradient narrows


def product_over_pixels(x: Array, grad: Array) -> Array:
    """``Σ x ⊗ grad`` over batch and space. Flat first: XLA turns operands of rank 4 over."""
    flat = (v.reshape(-1, v.shape[-1]) for v in (x, grad))
    return lax.dot_general(*flat, (((0,), (0,)), ((), ())))


def native(x: Array, kernel: Array, strides: int, groups: int, dilation: int = 1) -> Array:
    """XLA's convolution with torch's padding."""
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
def depthwise(x: Array, kernel: Array, strides: int, dilation: int) -> Array:
    """A depthwise convolution as a sum of shifted products."""
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
    def of_kernel(x: Array, grad: Array) -> dict[tuple[int, int], Array]:
        zero = jnp.zeros((1, *grad.shape[1:]), grad.dtype)
        sums = _sum_over_images(jnp.multiply, zero, x, grad, kernel.shape[0], strides, dilation)
        return {at: value.sum((0, 1, 2))[None] for at, value in sums.items()}

    return grad_x, _kernel_of(_over_devices(of_kernel)(x, grad), kernel)


def _sum_over_images(
    product: Callable[[Array, Array], Array],
    zero: Array,
    x: Array,
    grad: Array,
    size: int,
    strides: int,
    dilation: int = 1,
) -> dict[tuple[int, int], Array]:
    """By tap the sum over a batch of ``product(shifted pixels, gradient)`` of one image.

    One image's shifted pixels fit the cache; those of a whole batch XLA would even make in the
    forward pass, and keep.
    """

    def add(i: Array, sums: dict) -> dict:
        pixels, grad_of_image = (lax.dynamic_slice_in_dim(v, i, 1) for v in (x, grad))
        taps = _taps(pixels, size, strides, dilation)
        return {at: sums[at] + product(tap, grad_of_image) for at, tap in taps.items()}

    zeros = dict.fromkeys(_live_taps(x.shape, size, dilation), zero)
    return lax.fori_loop(0, len(x), add, zeros)


def _over_devices(sums: Callable) -> Callable:
    """Sums over the images of a batch, device by device where a mesh divides it.

    One loop over all of them would bring every image to every device.
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


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def dense(x: Array, kernel: Array, strides: int) -> Array:
    """A convolution over all channels, in the form that suits its map and channels."""
    if -(-x.shape[1] // strides) * -(-x.shape[2] // strides) > _SMALL_MAP:
        narrows = kernel.shape[2] >= _NARROWS * kernel.shape[3]
        return (
            _narrowing(x, kernel)
            if narrows and strides == 1
            else _dense_by_taps(x, kernel, strides)
        )
    products = [tap @ kernel[at] for at, tap in _taps(x, kernel.shape[0], strides).items()]
    return sum(products[1:], start=products[0])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense_by_taps(x: Array, kernel: Array, strides: int) -> Array:
    return native(x, kernel, strides, groups=1)


def _dense_forward(x: Array, kernel: Array, strides: int) -> tuple[Array, tuple[Array, Array]]:
    return native(x, kernel, strides, groups=1), (x, kernel)


def _dense_backward(
    strides: int, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    size, _, channels, features = kernel.shape
    large = grad.shape[1] * grad.shape[2] > _LARGE_MAP
    # On small maps shifting the results takes 12 ms where XLA's form takes 22 (28², 64 to 256).
    if features >= _WIDENS * channels and strides == 1 and not large:
        grad_x = _products_then_shifts(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    else:
        (grad_x,) = jax.linear_transpose(lambda v: native(v, kernel, strides, groups=1), x)(grad)
    if large:

        def of_kernel(x: Array, grad: Array) -> dict[tuple[int, int], Array]:
            zero = jnp.zeros((channels, features), grad.dtype)
            return _sum_over_images(product_over_pixels, zero, x, grad, size, strides)

        return grad_x, _kernel_of(_over_devices(of_kernel)(x, grad), kernel)
    taps = _taps(x, size, strides).items()
    products = {at: product_over_pixels(tap, grad) for at, tap in taps}
    return grad_x, _kernel_of(products, kernel)


_dense_by_taps.defvjp(_dense_forward, _dense_backward)


def _products_then_shifts(x: Array, kernel: Array) -> Array:
    size, _, channels, features = kernel.shape
    flat = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    products = (x.reshape(-1, channels) @ flat).reshape(*x.shape[:3], size, size, features)
    total = jnp.zeros((), x.dtype)
    for i, j in _live_taps(x.shape, size):
        down, right = size // 2 - i, size // 2 - j
        shifts = ((0, 0, 0), (down, -down, 0), (right, -right, 0), (0, 0, 0))
        total = total + lax.pad(products[:, :, :, i, j], jnp.zeros((), x.dtype), shifts)
    return total


@jax.custom_vjp
def _narrowing(x: Array, kernel: Array) -> Array:
    """A dense convolution to far fewer channels: it is its results that are shifted, not ``x``."""
    return _products_then_shifts(x, kernel)


def _narrowing_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _products_then_shifts(x, kernel), (x, kernel)


def _narrowing_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    (grad_x,) = jax.linear_transpose(lambda v: native(v, kernel, 1, groups=1), x)(grad)
    size = kernel.shape[0]
    shifted = _taps(grad, size, 1)
    wide = product_over_pixels(x, jnp.concatenate(list(shifted.values()), axis=-1))
    parts = jnp.split(wide, len(shifted), axis=-1)
    # Where the gradient was shifted one way, the pixels of that tap lie the other way.
    by_tap = {
        (size - 1 - i, size - 1 - j): part for (i, j), part in zip(shifted, parts, strict=True)
    }
    return grad_x, _kernel_of(by_tap, kernel)


_narrowing.defvjp(_narrowing_forward, _narrowing_backward)
