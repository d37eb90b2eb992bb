"""A map over an image: where the network looked, drawn so that the X-ray stays readable."""

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_COLOURS = "inferno"  # rises evenly in lightness, so that it reads the same printed grey
_STRONGEST = 0.55  # share of colour where the map is 1; where it is 0 the image is untouched


def attention_overlay(
    image: UInt8[np.ndarray, "height width"], heat: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """A grey image with a map laid over it.

    The map is stretched to the image, bilinearly: its cells are larger than they look. What the
    map leaves at 0 is shown as it is.

    Args:
        image: 0 ... 255.
        heat: 0 ... 1; not finite counts as 0.

    Returns:
        RGB, 0 ... 255.
    """
    height, width = image.shape
    cells = np.clip(np.nan_to_num(heat, posinf=0.0, neginf=0.0), 0, 1).astype(np.float32)
    stretched = Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR)
    heat = np.clip(np.asarray(stretched), 0, 1)
    colour = matplotlib.colormaps[_COLOURS](heat)[..., :3]
    share = _STRONGEST * heat[..., None]
    mixed = (1 - share) * (image[..., None] / 255) + share * colour
    return np.rint(255 * mixed).astype(np.uint8)


def stretched(heat: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """A map from its own lowest to its own highest value, 0 ... 1; 0 throughout if it is flat."""
    low, high = float(heat.min()), float(heat.max())
    if not high > low:
        return np.zeros_like(heat)
    return (heat - low) / (high - low)
