"""Draw where a network looks beside the boxes around findings."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from scipy.special import expit

from charm_jax.report import overlays
from charm_jax.report.cases import Tile
from charm_jax.report.contents import Evaluated, Localisation, Read, number, shown
from charm_jax.report.figures import picture

METHODS = {
    "attention": "Fusion map",
    "grad_cam": "Grad-CAM",
    "grad_cam_finer": "Finer Grad-CAM",
    "image_centre": "Image centre",
    "mean_box": "Mean box",
}
_SHOWN = 8  # findings with a picture: those with most boxes
_SIDE = 256  # least pixels a side of a picture
_TRUE, _PEAK = (0, 158, 255), (0, 0, 0)


def tiles(found: Localisation, evaluated: Evaluated, read: Read) -> list[Tile]:
    """Show the highest-scoring boxed image of each of the findings with most boxes.

    Beside the image with its boxes are the Grad-CAMs with boxes and peak.
    """
    truth = found.truth
    places = {row: place for place, row in enumerate(evaluated.rows.tolist())}
    logits = evaluated.logits[[places[row] for row in found.rows.tolist()], truth.findings]
    frequent = sorted(
        range(len(evaluated.findings)), key=lambda column: -(truth.findings == column).sum()
    )
    chosen = [
        int(np.argmax(np.where(truth.findings == column, logits, -np.inf)))
        for column in frequent[:_SHOWN]
        if (truth.findings == column).any()
    ]
    made = []
    for pair, image in zip(chosen, read(found.rows[chosen]), strict=True):
        boxes = truth.boxes[truth.pairs == pair]
        name = str(evaluated.images[places[int(found.rows[pair])]])
        finding = shown(evaluated.findings[truth.findings[pair]])
        large = _enlarged(image)
        pictures = [picture(_marked(large, boxes), f"{name} with the boxes of {finding}")]
        hits = []
        for method in ("grad_cam", "grad_cam_finer"):
            heat = overlays.stretched(found.maps[method][pair].astype(float))
            peak = found.located[method].peaks[pair]
            drawn = _marked(overlays.attention_overlay(large, heat), boxes, peak)
            pictures.append(picture(drawn, f"{name} with {METHODS[method]} for {finding}"))
            inside = ((boxes[:, :2] <= peak) & (peak <= boxes[:, 2:])).all(axis=1).any()
            place = "inside" if inside else "outside"
            place = f"peak {place}" if found.maps[method][pair].any() else "0 everywhere"
            hits.append(f"{METHODS[method]}: {place}")
        made.append(
            Tile(finding, pictures, [*hits, f"score {number(float(expit(logits[pair])))}", name])
        )
    return made


def _enlarged(image: UInt8[np.ndarray, "s s"]) -> UInt8[np.ndarray, "t t"]:
    """Enlarge an image whose lines would be too coarse."""
    side = max(_SIDE, len(image))
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _marked(
    pixels: UInt8[np.ndarray, "s s *colours"],
    boxes: Float[np.ndarray, "n 4"],
    peak: Float[np.ndarray, "2"] | None = None,
) -> UInt8[np.ndarray, "s s 3"]:
    """Draw boxes and a cross at the peak."""
    marked = Image.fromarray(pixels).convert("RGB")
    pen, side = ImageDraw.Draw(marked), len(pixels)
    for left, top, right, bottom in (boxes * (side - 1)).tolist():
        pen.rectangle((left, top, right, bottom), outline=_TRUE, width=2)
    if peak is not None:
        x, y = (peak * (side - 1)).tolist()
        for colour, width, reach in ((_PEAK, 5, 9), ((255, 255, 255), 2, 8)):
            pen.line((x - reach, y, x + reach, y), colour, width)
            pen.line((x, y - reach, x, y + reach), colour, width)
    return np.asarray(marked)
