"""Augment and normalise images on the device, in float32."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray, UInt8

# For red, green and blue at 0..1; the pretrained backbones expect them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = "imagenet"
# Values of black and white; "xrv" is TorchXRayVision's.
RANGES = {"unit": (0.0, 1.0), "xrv": (-1024.0, 1024.0)}

Grey = Float[Array, "batch height width 1"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Say how training images are changed at random; 0 or False leaves a change out.

    Attributes:
        flip: whether half of the images are mirrored left to right.
        rotate: largest angle in degrees; half of the images are rotated.
        scale: largest relative change of size, 0 to below 1.
        translate: largest shift, as a share of the side.
        brightness: largest shift of grey levels, as a share of white.
        contrast: largest relative change of the distance from an image's mean.
        noise: standard deviation of Gaussian noise, as a share of white.
        erase: probability that a rectangle is filled with random grey levels.
    """

    flip: bool = True
    rotate: float = 10.0
    scale: float = 0.0
    translate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    erase: float = 0.0


DEFAULT = Augmentation()


def training_images(
    key: PRNGKeyArray,
    images: UInt8[Array, "batch height width 1"],
    channels: int = 3,
    input_range: str = IMAGENET,
    changes: Augmentation = DEFAULT,
) -> Float[Array, "batch height width channels"]:
    """Augment and normalise a training batch, in 3 channels or 1.

    Each image has draws of its own; those of a change do not depend on the others.
    """
    flip_key, affine_key = jax.random.split(key)  # as fold_in(key, 0) and (key, 1)
    grey = images.astype(jnp.float32)
    if changes.flip:
        grey = flip(flip_key, grey)
    if changes.scale or changes.translate:
        grey = affine(affine_key, grey, changes.rotate, changes.scale, changes.translate)
    elif changes.rotate:
        grey = rotate(affine_key, grey, changes.rotate)
    if changes.brightness or changes.contrast:
        grey = jitter(jax.random.fold_in(key, 2), grey, changes.brightness, changes.contrast)
    if changes.noise:
        grey = add_noise(jax.random.fold_in(key, 3), grey, changes.noise)
    if changes.erase:
        grey = erase(jax.random.fold_in(key, 4), grey, changes.erase)
    return normalise(grey, channels, input_range)


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
    return rotate_by(_angles(key, images.shape[0], degrees, p), images)


def _angles(key: PRNGKeyArray, n: int, degrees: float, p: float) -> Float[Array, " batch"]:
    angle_key, chosen_key = jax.random.split(key)
    angles = jax.random.uniform(angle_key, (n,), minval=-degrees, maxval=degrees)
    return jnp.where(jax.random.bernoulli(chosen_key, p, (n,)), angles, 0.0)


def rotate_by(degrees: Float[Array, " batch"], images: Grey) -> Grey:
    """Rotate each image counter-clockwise by its own angle; see ``rotate``."""
    turned = jax.vmap(_rotate_one)(jnp.deg2rad(degrees), images[..., 0])
    return turned[..., None]


def affine(
    key: PRNGKeyArray, images: Grey, degrees: float, scale: float, translate: float, p: float = 0.5
) -> Grey:
    """Rotate, resize and shift each image in one interpolation, each with probability ``p``.

    Sizes are uniform in 1 ± ``scale`` and shifts in ±``translate`` of a side; borders are those of
    ``rotate``, whose angles these are.
    """
    n = images.shape[0]
    keys = [jax.random.fold_in(key, i) for i in (2, 3, 4)]  # 0 and 1 are those of the angles
    size = jax.random.uniform(keys[0], (n,), minval=1 - scale, maxval=1 + scale)
    shift = jax.random.uniform(keys[1], (n, 2), minval=-translate, maxval=translate)
    resized, shifted = jax.random.bernoulli(keys[2], p, (2, n))
    return affine_by(
        _angles(key, n, degrees, p),
        jnp.where(resized, size, 1.0),
        jnp.where(shifted[:, None], shift, 0.0),
        images,
    )


def affine_by(
    degrees: Float[Array, " batch"],
    size: Float[Array, " batch"],
    shift: Float[Array, "batch 2"],
    images: Grey,
) -> Grey:
    """Rotate each image by its angle, enlarge it ``size`` times, then shift it down and right."""
    pixels = shift * jnp.asarray(images.shape[1:3], jnp.float32)[None]
    moved = jax.vmap(_rotate_one)(jnp.deg2rad(degrees), images[..., 0], size, pixels)
    return moved[..., None]


def _rotate_one(
    angle: Float[Array, ""],
    image: Float[Array, "height width"],
    size: Float[Array, ""] | None = None,
    shift: Float[Array, "2"] | None = None,
) -> Float[Array, "height width"]:
    height, width = image.shape
    y = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2).reshape(-1, 1)
    x = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2).reshape(1, -1)
    if size is not None and shift is not None:
        y, x = (y - shift[0]) / size, (x - shift[1]) / size
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # The source position of each output pixel; y points down.
    source_y = cos * y + sin * x + (height - 1) / 2
    source_x = cos * x - sin * y + (width - 1) / 2
    return map_coordinates(image, [source_y, source_x], order=1, mode="mirror")


def jitter(key: PRNGKeyArray, images: Grey, brightness: float, contrast: float) -> Grey:
    """Change brightness and contrast of each image; grey levels stay in 0..255.

    The shift is uniform in ±``brightness`` of white, the factor of the distance from the image's
    mean in 1 ± ``contrast``.
    """
    shift_key, factor_key = jax.random.split(key)
    shape = (images.shape[0], 1, 1, 1)
    shift = jax.random.uniform(shift_key, shape, minval=-brightness, maxval=brightness)
    factor = jax.random.uniform(factor_key, shape, minval=1 - contrast, maxval=1 + contrast)
    mean = images.mean((1, 2, 3), keepdims=True)
    return jnp.clip(mean + factor * (images - mean) + 255 * shift, 0, 255)


def add_noise(key: PRNGKeyArray, images: Grey, deviation: float) -> Grey:
    """Add Gaussian noise with a standard deviation of a share of white; they stay in 0..255."""
    noise = jax.random.normal(key, images.shape)
    return jnp.clip(images + 255 * deviation * noise, 0, 255)


def erase(key: PRNGKeyArray, images: Grey, p: float) -> Grey:
    """Fill a rectangle of each image with random grey levels, with probability ``p``.

    Its area is uniform in 2 to 40 % of the image, its height over width in 0.3 to 3.3.

    Source: Zhong et al., arXiv 1708.04896, algorithm 1.
    Differs: a rectangle that is higher or wider than the image is cut, where the paper draws again.
    """
    n, height, width, _ = images.shape
    keys = jax.random.split(key, 5)
    area = height * width * jax.random.uniform(keys[0], (n,), minval=0.02, maxval=0.4)
    aspect = jax.random.uniform(keys[1], (n,), minval=0.3, maxval=3.3)
    sides = jnp.stack([jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)])
    limits = jnp.asarray([[height], [width]], jnp.float32)
    sides = jnp.minimum(sides, limits)
    start = jax.random.uniform(keys[2], (2, n)) * (limits - sides)
    y, x = (
        (jnp.arange(length)[None] + 0.5 >= first[:, None])
        & (jnp.arange(length)[None] + 0.5 < (first + side)[:, None])
        for length, first, side in zip((height, width), start, sides, strict=True)
    )
    chosen = jax.random.bernoulli(keys[3], p, (n, 1, 1, 1))
    inside = chosen & y[:, :, None, None] & x[:, None, :, None]
    return jnp.where(inside, jax.random.uniform(keys[4], images.shape, maxval=255.0), images)


def mixup(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channels"],
    labels: Num[Array, "batch findings"],
    alpha: float,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch findings"]]:
    """Mix each image and its labels with a random other of the batch.

    The first has the share λ, drawn for each image from Beta(``alpha``, ``alpha``) and at least ½:
    the smaller share is the other's.

    Args:
        labels: 1, 0 or -1 (unknown).

    Returns:
        The images, and targets between 0 and 1, or -1 where a label with a share is unknown.

    Source: Zhang et al., arXiv 1710.09412, equation 1.
    Differs: there, λ is one number for the batch, and may be below ½; pairs are unordered, so that
    it is the same pairs with the same shares.
    """
    share_key, pair_key = jax.random.split(key)
    n = images.shape[0]
    share = jax.random.beta(share_key, alpha, alpha, (n,))
    return mix(jnp.maximum(share, 1 - share), jax.random.permutation(pair_key, n), images, labels)


def mix(
    share: Float[Array, " batch"],
    other: Int[Array, " batch"],
    images: Float[Array, "batch height width channels"],
    labels: Num[Array, "batch findings"],
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch findings"]]:
    """Mix each image and its labels with those of row ``other``; see ``mixup``."""
    wide, share = share[:, None, None, None], share[:, None]
    mixed = wide * images + (1 - wide) * images[other]
    targets = share * labels + (1 - share) * labels[other]
    known = ((share == 0) | (labels >= 0)) & ((share == 1) | (labels[other] >= 0))
    return mixed, jnp.where(known, targets, -1.0)
