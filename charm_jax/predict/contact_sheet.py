"""Draw an X-ray beside its maps, with captions, as one picture."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from charm_jax.inference.predictor import ATTENTION
from charm_jax.report.overlays import FLAT, attention_overlay, stretched

_LONG = 512  # pixels of a panel's longer side
_GAP, _SIZE, _LINE = 10, 15, 22  # pixels between panels, of a letter, of a line
_COLUMNS = 4
_LETTER = 0.62  # mean width of a letter, of its size
_WHITE, _GREY = (255, 255, 255), (190, 190, 190)
_FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def contact_sheet(
    image: UInt8[np.ndarray, "height width"],
    heats: Mapping[str, Float[np.ndarray, "h w"]],
    captions: Mapping[str, str],
    notes: Sequence[str],
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Draw an image as it is and under each map, on black, with a caption below each.

    Args:
        image: 0 ... 255.
        heats: maps by title, each stretched over its own range.
        captions: line below the map of a title; the title itself by default.
        notes: sentences below all of them.

    Returns:
        RGB, 0 ... 255.
    """
    scale = _LONG / max(image.shape)
    height, width = (max(round(side * scale), 1) for side in image.shape)
    grey = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    panels = [("input image", np.repeat(grey[..., None], 3, axis=2))]
    for title, heat in heats.items():
        heat = stretched(heat, FLAT if title.endswith(ATTENTION) else 0.0)
        panels.append((captions.get(title, title), attention_overlay(grey, heat)))
    columns = min(len(panels), _COLUMNS)
    cell = max(width, _LONG // 2) + _GAP, height + _LINE + _GAP
    across = columns * cell[0] + _GAP
    letters = int((across - 2 * _GAP) / (_LETTER * _SIZE))
    lines = [line for note in notes for line in textwrap.wrap(note, letters)]
    down = -(-len(panels) // columns) * cell[1] + len(lines) * _LINE + 2 * _GAP
    sheet = Image.new("RGB", (across, down))
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(_FONT, _SIZE)
    for number, (caption, picture) in enumerate(panels):
        x, y = _GAP + number % columns * cell[0], _GAP + number // columns * cell[1]
        sheet.paste(Image.fromarray(picture), (x, y))
        short = textwrap.shorten(caption, int((cell[0] - _GAP) / (_LETTER * _SIZE)))
        draw.text((x, y + height + 2), short, _WHITE, font)
    for number, line in enumerate(reversed(lines), 1):
        draw.text((_GAP, down - _GAP - number * _LINE), line, _GREY, font)
    return np.asarray(sheet)
