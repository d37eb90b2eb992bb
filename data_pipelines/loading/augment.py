"""Augment and normalise images on the device, in float32."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

# For red, green and blue at 0..1; the pretrained backbones expect them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = "imagenet"
# Values of black and white; "xrv" is TorchXRayVision's.
RANGES = {"unit": (0.0, 1.0), "xrv": (-1024.0, 1024.0)}

Grey = Float[Array, "batch height width 1"]


def training_images(
    key: PRNGKeyArray,
    images: UInt8[Array, "batch height width 1"],
    channels: int = 3,
    input_range: str = IMAGENET,
) -> Float[Array, "batch height width channels"]:
    """Flip, rotate and normalise a training batch, in 3 channels or 1."""
    flip_key, rotate_key = jax.random.split(key)
    grey = images.astype(jnp.float32)
    return normalise(rotate(rotate_key, flip(flip_key, grey)), channels, input_range)


def evaluation_images(
    images: UInt8[Array, "batch height width 1"], channels: int = 3, input_range: str = IMAGENET
) -> Float[Array, "batch height width channels"]:
    """Normalise a batch without augmentation, in 3 equal channels or 1."""
    return normalise(images.astype(jnp.float32), channels, input_range)


def bounds(input_range: str) -> tuple[float, float] | None:
    """Return the values of black and white in a range; None for ImageNet's, which has three.

    Args:
        input_range: ``imagenet``, a key of ``RANGES`` or two finite numbers, ``-1,1``.

    Raises:
        ValueError: it is none of these.
    """
    if input_range == IMAGENET:
        return None
    if input_range in RANGES:
        return RANGES[input_range]
    black, white = map(float, input_range.split(","))
    if not (math.isfinite(black) and math.isfinite(white) and black != white):
        raise ValueError(f"{input_range} is no range")
    return black, white


def is_input_range(text: str) -> bool:
    """Whether ``bounds`` accepts a text."""
    try:
        bounds(text)
    except ValueError:
        return False
    return True


def normalise(
    images: Grey, channels: int = 3, input_range: str = IMAGENET
) -> Float[Array, "batch height width channels"]:
    """Scale grey levels to the range that a network expects.

    Args:
        images: grey levels 0..255.
        channels: 3 for equal channels, 1 for one.
        input_range: as ``bounds`` takes it; ``imagenet`` subtracts ImageNet's mean and divides by
            its standard deviation, by channel, or their means over the channels for one.
    """
    if limits := bounds(input_range):
        black, white = limits
        scaled = images / 255.0 * (white - black) + black
        return jnp.broadcast_to(scaled, (*images.shape[:-1], channels))
    mean, std = jnp.asarray(IMAGENET_MEAN), jnp.asarray(IMAGENET_STD)
    if channels == 1:
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    shape = (1, 1, 1, channels)
    return (images / 255.0 - mean.reshape(shape)) / std.reshape(shape)


def flip(key: PRNGKeyArray, images: Grey, p: float = 0.5) -> Grey:
    """Mirror each image left to right with probability ``p``."""
    chosen = jax.random.bernoulli(key, p, (images.shape[0], 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)


def rotate(key: PRNGKeyArray, images: Grey, degrees: float = 10.0, p: float = 0.5) -> Grey:
    """Rotate each image about its centre with probability ``p``.

    The angle is uniform in ±``degrees``; interpolation is bilinear; beyond the border the image is
    mirrored at the centres of its outermost pixels (torch's ``grid_sample`` with
    ``padding_mode="reflection", align_corners=True``, which fastai uses; SciPy's ``mirror``).
    """
    angle_key, chosen_key = jax.random.split(key)
    n = (images.shape[0],)
    angles = jax.random.uniform(angle_key, n, minval=-degrees, maxval=degrees)
    chosen = jax.random.bernoulli(chosen_key, p, n)
    return rotate_by(jnp.where(chosen, angles, 0.0), images)


def rotate_by(degrees: Float[Array, " batch"], images: Grey) -> Grey:
    """Rotate each image counter-clockwise by its own angle; see ``rotate``."""
    turned = jax.vmap(_rotate_one)(jnp.deg2rad(degrees), images[..., 0])
    return turned[..., None]


def _rotate_one(
    angle: Float[Array, ""], image: Float[Array, "height width"]
) -> Float[Array, "height width"]:
    height, width = image.shape
    y = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2).reshape(-1, 1)
    x = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2).reshape(1, -1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # The source position of each output pixel; y points down.
    source_y = cos * y + sin * x + (height - 1) / 2
    source_x = cos * x - sin * y + (width - 1) / 2
    return map_coordinates(image, [source_y, source_x], order=1, mode="mirror")
