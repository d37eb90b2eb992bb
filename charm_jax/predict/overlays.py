"""Draw the fusion map of a prediction, and a Grad-CAM for each reported finding."""

import hashlib
import itertools
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from charm_jax.inference.predictor import ATTENTION
from charm_jax.report.overlays import FLAT, attention_overlay, stretched
from data_pipelines.atomic_files import whole_path
from data_pipelines.images.decode import read_image
from data_pipelines.images.search import SUFFIXES

_IMAGE = "image"  # key of the digest in a picture
_SIDE = 512  # least side of a picture in pixels; images are squeezed to squares
_STEM, _TITLE = 120, 80  # bytes: with the name of a draft they stay below 255


class Overlays:
    """Write pictures to a folder, in files named after the images.

    A picture keeps a digest of its image's path, so that it is replaced by that image's alone.
    """

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
        written: dict[str, str] = {}
        if not heats:
            return written
        digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
        plain = {title: _shortened(re.sub(r"[^\w-]+", "_", title), _TITLE) for title in heats}
        stem, info = self._stem(name, plain.values(), digest), PngInfo()
        info.add_text(_IMAGE, digest)
        image = read_image(path, self.side, self.value_range)[..., 0]
        for title, heat in heats.items():
            target = self._path(stem, plain[title])
            target.parent.mkdir(parents=True, exist_ok=True)
            heat = stretched(heat, FLAT if title.endswith(ATTENTION) else 0.0)
            picture = Image.fromarray(attention_overlay(image, heat))
            with whole_path(target) as draft:
                picture.save(draft, format="PNG", pnginfo=info)
            written[title] = target.as_posix()
        return written

    def _path(self, stem: PurePosixPath, title: str) -> Path:
        return self.out / f"{stem}.{title}.png"

    def _stem(self, name: str, titles: Collection[str], digest: str) -> PurePosixPath:
        """Return the name without its suffix, or one that no other image has already."""
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
        whole = PurePosixPath(*parts)
        stem = whole.with_suffix("") if whole.suffix.lower() in SUFFIXES else whole
        numbered = (whole.with_name(f"{whole.name}_{number}") for number in itertools.count(2))
        for candidate in itertools.chain((stem, whole), numbered):
            short = candidate.with_name(_shortened(candidate.name, _STEM))
            there = [path for title in titles if (path := self._path(short, title)).exists()]
            if short not in self._taken and all(_image_of(path) == digest for path in there):
                self._taken.add(short)
                return short


def _image_of(picture: Path) -> str | None:
    """Return the digest that a picture keeps; None if there is none."""
    try:
        with Image.open(picture) as opened:
            return opened.info.get(_IMAGE)
    except OSError:  # no picture, though it is named like one
        return None


def _shortened(text: str, most: int) -> str:
    """Return a text of at most so many bytes; a digest replaces what is cut off."""
    whole = os.fsencode(text)
    if len(whole) <= most:
        return text
    digest = hashlib.sha256(whole).hexdigest()[:8]
    return f"{whole[: most - 9].decode(errors='ignore')}-{digest}"
