"""A map over an image: where the network looked, drawn so that the X-ray stays readable."""

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_COLOURS = "YlOrRd"  # of one hue, darker where higher: no rainbow's edges where the map has none
_STRONGEST = 0.5  # share of colour where the map is 1; where it is 0 the image is untouched
FLAT = 0.25  # attention lies between 0 and 1; a range below this one is drawn paler


def attention_overlay(
    image: UInt8[np.ndarray, "height width"], heat: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay a map over a grey image.

    The map is stretched to the image, smoothly: its cells are larger than what it shows. What it
    leaves at 0 is seen as it is.

    Args:
        image: 0 ... 255.
        heat: 0 ... 1; not finite counts as 0.

    Returns:
        RGB, 0 ... 255.
    """
    height, width = image.shape
    cells = np.clip(np.nan_to_num(heat, posinf=0.0, neginf=0.0), 0, 1).astype(np.float32)
    smooth = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0, 1)
    colour = matplotlib.colormaps[_COLOURS](heat)[..., :3]
    share = _STRONGEST * heat[..., None]
    mixed = (1 - share) * (image[..., None] / 255) + share * colour
    return np.rint(255 * mixed).astype(np.uint8)


def stretched(heat: Float[np.ndarray, "h w"], least: float = 0.0) -> Float[np.ndarray, "h w"]:
    """Stretch a map from its own lowest value to 1 at its highest.

    Args:
        heat: any finite values.
        least: a range below which a map is not stretched to 1, so that one that is nearly flat
            looks it; 0 throughout where the range is 0.
    """
    low, high = float(heat.min()), float(heat.max())
    return (heat - low) / (max(high - low, least) or 1.0)
