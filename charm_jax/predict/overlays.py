"""Draw the fusion map of a prediction, and a Grad-CAM for each reported finding."""

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

_SIDE = 512  # least side of a picture in pixels; images are squeezed to squares


class Overlays:
    """Write pictures to a folder, in files named after the images."""

    def __init__(self, out: Path, image_size: int):
        self.out, self.side = out, max(_SIDE, image_size)
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
        image = read_image(path, self.side)[..., 0]
        for title, heat in heats.items():
            plain = re.sub(r"[^\w-]+", "_", title)
            target = self.out / f"{stem}.{plain}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            heat = stretched(heat, FLAT if title == ATTENTION else 0.0)
            picture = Image.fromarray(attention_overlay(image, heat))
            with whole_path(target) as draft:
                picture.save(draft, format="PNG")
            written[title] = target.as_posix()
        return written

    def _stem(self, name: str) -> PurePosixPath:
        """Return the name without its suffix, unless another image has that one already."""
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
        whole = PurePosixPath(*parts)
        stem = whole.with_suffix("")
        stem = whole if stem in self._taken else stem
        self._taken.add(stem)
        return stem
