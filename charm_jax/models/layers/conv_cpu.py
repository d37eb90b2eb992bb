"""Compute convolutions and their gradients in XLA's form and in forms that suit a CPU."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

# Pixels by which the windows lie further down and right than torch's padding has them.
Shift = tuple[int, int]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SMALL_MAP, _LARGE_MAP = 9, 1024  # pixels
_NARROWS = 8  # at least this many times as many channels as features, as in the fusion
_WIDENS = 4  # at least this many times as many features as channels


def product_over_pixels(x: Array, grad: Array, dtype: DTypeLike | None = None) -> Array:
    """Sum ``x ⊗ grad`` over batch and space; flat, since XLA transposes operands of rank 4."""
    flat = (v.reshape(-1, v.shape[-1]) for v in (x, grad))
    return lax.dot_general(*flat, (((0,), (0,)), ((), ())), preferred_element_type=dtype)


def native(
    x: Array,
    kernel: Array,
    strides: int,
    groups: int,
    dilation: int = 1,
    shift: Shift = (0, 0),
) -> Array:
    """Run XLA's convolution with torch's padding, or shifted from it."""
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(pad - moved, pad + moved) for moved in shift],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _live_taps(sides: tuple[int, ...], size: int, dilation: int = 1) -> list[tuple[int, int]]:
    """Return (row, column) of the taps that read more than padding, in row-major order.

    A dilated kernel on a small map has few of them.
    """
    reach = size // 2
    rows, columns = ([i for i in range(size) if dilation * abs(i - reach) < side] for side in sides)
    return [(i, j) for i in rows for j in columns]


def _taps(
    x: Array, size: int, strides: int, dilation: int = 1, shift: Shift = (0, 0)
) -> dict[tuple[int, int], Array]:
    """Return the shifted views of the padded ``x`` by the kernel's row and column."""
    pad = dilation * (size // 2)
    height, width = -(-x.shape[1] // strides), -(-x.shape[2] // strides)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def window(start: int, length: int) -> slice:
        return slice(start, start + strides * (length - 1) + 1, strides)

    down, right = shift
    return {
        (i, j): padded[:, window(dilation * i + down, height), window(dilation * j + right, width)]
        for i, j in _live_taps(x.shape[1:3], size, dilation)
    }


def _kernel_of(parts: dict[tuple[int, int], Array], kernel: Array) -> Array:
    """Place parts by row and column in an array like ``kernel``; the rest is zero."""
    unread = jnp.zeros(kernel.shape[2:], kernel.dtype)
    rows = [parts.get(at, unread) for at in np.ndindex(kernel.shape[:2])]
    return jnp.stack(rows).reshape(kernel.shape)


def _sum_of_taps(
    x: Array, kernel: Array, strides: int, dilation: int, shift: Shift = (0, 0)
) -> Array:
    taps = _taps(x, kernel.shape[0], strides, dilation, shift)
    products = [tap * kernel[at].reshape(1, 1, 1, -1) for at, tap in taps.items()]
    return sum(products[1:], start=products[0])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise(x: Array, kernel: Array, strides: int, dilation: int, shift: Shift = (0, 0)) -> Array:
    """Convolve depthwise as a sum of shifted products."""
    return _sum_of_taps(x, kernel, strides, dilation, shift)


def _depthwise_forward(
    x: Array, kernel: Array, strides: int, dilation: int, shift: Shift
) -> tuple[Array, tuple[Array, Array]]:
    return _sum_of_taps(x, kernel, strides, dilation, shift), (x, kernel)


def _depthwise_backward(
    strides: int, dilation: int, shift: Shift, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    if strides == 1:
        grad_x = _sum_of_taps(grad, kernel[::-1, ::-1], strides, dilation)
    else:
        grad_x = _by_phases(grad, kernel, strides, dilation, shift, x.shape[1:3])

    # Image after image, sums stay elementwise; reductions take up to 5 times as long.
    def of_kernel(x: Array, grad: Array) -> dict[tuple[int, int], Array]:
        zero = jnp.zeros((1, *grad.shape[1:]), grad.dtype)
        sums = _sum_over_images(
            jnp.multiply, zero, x, grad, kernel.shape[0], strides, dilation, shift
        )
        return {at: value.sum((0, 1, 2))[None] for at, value in sums.items()}

    return grad_x, _kernel_of(_over_devices(of_kernel)(x, grad), kernel)


def _by_phases(
    grad: Array,
    kernel: Array,
    strides: int,
    dilation: int,
    shift: Shift,
    sides: tuple[int, ...],
) -> Array:
    """Return the input's gradient of a strided ``_sum_of_taps``.

    Pixels whose row and column leave the same rests are read by the same taps. JAX's own form adds
    the taps' gradients with zeros between their pixels, in a loop that XLA does not vectorise.
    """
    pad = dilation * (kernel.shape[0] // 2)
    padded = jnp.pad(grad, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = grad.shape[1:3]

    def phase(row: int, column: int) -> Array:
        total = jnp.zeros((), grad.dtype)
        for i, j in _live_taps(sides, kernel.shape[0], dilation):
            down = row + pad - dilation * i - shift[0]
            right = column + pad - dilation * j - shift[1]
            if down % strides or right % strides:
                continue
            top, left = pad + down // strides, pad + right // strides
            pixels = padded[:, top : top + height, left : left + width]
            total = total + pixels * kernel[i, j].reshape(1, 1, 1, -1)
        return jnp.broadcast_to(total, grad.shape)

    phases = range(strides)
    rows = [jnp.stack([phase(r, c) for c in phases], axis=3) for r in phases]
    whole = jnp.stack(rows, axis=2).reshape(
        len(grad), height * strides, width * strides, grad.shape[-1]
    )
    return whole[:, : sides[0], : sides[1]]


def _sum_over_images(
    product: Callable[[Array, Array], Array],
    zero: Array,
    x: Array,
    grad: Array,
    size: int,
    strides: int,
    dilation: int = 1,
    shift: Shift = (0, 0),
) -> dict[tuple[int, int], Array]:
    """Sum ``product(shifted pixels, gradient)`` over the images of a batch, for each tap.

    One image's shifted pixels fit the cache; those of a whole batch XLA would even compute in the
    forward pass, and keep.
    """

    def add(i: Array, sums: dict) -> dict:
        pixels, grad_of_image = (lax.dynamic_slice_in_dim(v, i, 1) for v in (x, grad))
        taps = _taps(pixels, size, strides, dilation, shift)
        return {at: sums[at] + product(tap, grad_of_image) for at, tap in taps.items()}

    zeros = dict.fromkeys(_live_taps(x.shape[1:3], size, dilation), zero)
    return lax.fori_loop(0, len(x), add, zeros)


def _over_devices(sums: Callable) -> Callable:
    """Run ``sums`` on each device's share of a batch and add the results.

    One loop over the whole batch would bring every image to every device.
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


def dense(x: Array, kernel: Array, strides: int, shift: Shift = (0, 0)) -> Array:
    """Convolve over all channels, in the form that suits map and channels."""
    if -(-x.shape[1] // strides) * -(-x.shape[2] // strides) > _SMALL_MAP:
        narrows = kernel.shape[2] >= _NARROWS * kernel.shape[3]
        return (
            _narrowing(x, kernel)
            if narrows and strides == 1
            else _dense_by_taps(x, kernel, strides, shift)
        )
    taps = _taps(x, kernel.shape[0], strides, shift=shift)
    products = [tap @ kernel[at] for at, tap in taps.items()]
    return sum(products[1:], start=products[0])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_by_taps(x: Array, kernel: Array, strides: int, shift: Shift) -> Array:
    return native(x, kernel, strides, groups=1, shift=shift)


def _dense_forward(
    x: Array, kernel: Array, strides: int, shift: Shift
) -> tuple[Array, tuple[Array, Array]]:
    return native(x, kernel, strides, groups=1, shift=shift), (x, kernel)


def _dense_backward(
    strides: int, shift: Shift, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    size, _, channels, features = kernel.shape
    large = grad.shape[1] * grad.shape[2] >= _LARGE_MAP
    # On small maps shifting the results takes 12 ms where XLA's form takes 22 (28², 64 to 256).
    if features >= _WIDENS * channels and strides == 1 and not large:
        grad_x = _products_then_shifts(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    else:
        of_x = partial(native, kernel=kernel, strides=strides, groups=1, shift=shift)
        (grad_x,) = jax.linear_transpose(of_x, x)(grad)
    if large:

        def of_kernel(x: Array, grad: Array) -> dict[tuple[int, int], Array]:
            zero = jnp.zeros((channels, features), grad.dtype)
            return _sum_over_images(product_over_pixels, zero, x, grad, size, strides, shift=shift)

        return grad_x, _kernel_of(_over_devices(of_kernel)(x, grad), kernel)
    taps = _taps(x, size, strides, shift=shift).items()
    products = {at: product_over_pixels(tap, grad) for at, tap in taps}
    return grad_x, _kernel_of(products, kernel)


_dense_by_taps.defvjp(_dense_forward, _dense_backward)


def _products_then_shifts(x: Array, kernel: Array) -> Array:
    size, _, channels, features = kernel.shape
    flat = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    products = (x.reshape(-1, channels) @ flat).reshape(*x.shape[:3], size, size, features)
    total = jnp.zeros((), x.dtype)
    for i, j in _live_taps(x.shape[1:3], size):
        down, right = size // 2 - i, size // 2 - j
        shifts = ((0, 0, 0), (down, -down, 0), (right, -right, 0), (0, 0, 0))
        total = total + lax.pad(products[:, :, :, i, j], jnp.zeros((), x.dtype), shifts)
    return total


@jax.custom_vjp
def _narrowing(x: Array, kernel: Array) -> Array:
    """Convolve to far fewer channels by shifting results, not ``x``."""
    return _products_then_shifts(x, kernel)


def _narrowing_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _products_then_shifts(x, kernel), (x, kernel)


def _narrowing_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    size = kernel.shape[0]
    # A gradient shifted one way meets the pixels of the opposite tap.
    shifted = {(size - 1 - i, size - 1 - j): tap for (i, j), tap in _taps(grad, size, 1).items()}
    narrow = jnp.concatenate(list(shifted.values()), axis=-1)
    wide = product_over_pixels(x, narrow)
    by_tap = dict(zip(shifted, jnp.split(wide, len(shifted), axis=-1), strict=True))
    # XLA's own form takes 40 times as long where the kernel is larger than the map.
    turned = jnp.concatenate([kernel[at].T for at in shifted])
    return narrow @ turned, _kernel_of(by_tap, kernel)


_narrowing.defvjp(_narrowing_forward, _narrowing_backward)
