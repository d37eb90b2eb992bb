"""Draw the fusion map of a prediction, and a Grad-CAM for each reported finding."""

import hashlib
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float
from PIL import Image

from charm_jax.inference.predictor import ATTENTION
from charm_jax.report.overlays import FLAT, attention_overlay, stretched
from data_pipelines.atomic_files import whole_path
from data_pipelines.images.decode import read_image
from data_pipelines.images.search import SUFFIXES

_SIDE = 512  # least side of a picture in pixels; images are squeezed to squares
_STEM, _TITLE = 120, 80  # bytes: with the name of a draft they stay below 255


class Overlays:
    """Write pictures to a folder, in files named after the images."""

    def __init__(self, out: Path, image_size: int, value_range: str):
        self.out, self.side, self.value_range = out, max(_SIDE, image_size), value_range
        self._taken: set[PurePosixPath] = set()

    def write(
        self, name: str, path: Path, heats: Mapping[str, Float[np.ndarray, "h w"]]
    ) -> dict[str, str]:
        """Draw maps over an image, each stretched over its own range; return the files by title.

        Args:
            name: name of the image; its folders become folders of the output.
            heats: maps by title.
        """
        stem, written = self._stem(name), {}
        if not heats:
            return written
        image = read_image(path, self.side, self.value_range)[..., 0]
        for title, heat in heats.items():
            plain = _shortened(re.sub(r"[^\w-]+", "_", title), _TITLE)
            target = self.out / f"{stem}.{plain}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            heat = stretched(heat, FLAT if title == ATTENTION else 0.0)
            picture = Image.fromarray(attention_overlay(image, heat))
            with whole_path(target) as draft:
                picture.save(draft, format="PNG")
            written[title] = target.as_posix()
        return written

    def _stem(self, name: str) -> PurePosixPath:
        """Return the name without its suffix, or one that no other image has already."""
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
        whole = PurePosixPath(*parts)
        stem = whole.with_suffix("") if whole.suffix.lower() in SUFFIXES else whole
        numbered = (whole.with_name(f"{whole.name}_{number}") for number in itertools.count(2))
        for candidate in itertools.chain((stem, whole), numbered):
            short = candidate.with_name(_shortened(candidate.name, _STEM))
            if short not in self._taken:
                self._taken.add(short)
                return short


def _shortened(text: str, most: int) -> str:
    """Return a text of at most so many bytes; a digest replaces what is cut off."""
    whole = os.fsencode(text)
    if len(whole) <= most:
        return text
    digest = hashlib.sha256(whole).hexdigest()[:8]
    return f"{whole[: most - 9].decode(errors='ignore')}-{digest}"
