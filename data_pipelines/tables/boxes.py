"""Hold the boxes that a source gives around the findings in its images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.findings import canonical, plain

_EDGES = ("x", "y", "width", "height")


@dataclasses.dataclass(frozen=True)
class Boxes:
    """List boxes around findings, several for some images and none for most.

    Attributes:
        rows: row of each box's image in its source's table.
        findings: ``[n]`` names, those of the source's table.
        places: left edge x, top edge y, width and height in pixels of the original image.
        sizes: width and height of the original image in pixels.
        warnings: what was left out or cut off, a sentence each.
    """

    rows: Int[np.ndarray, " n"]
    findings: np.ndarray
    places: Float[np.ndarray, "n 4"]
    sizes: Float[np.ndarray, "n 2"]
    warnings: tuple[str, ...] = ()

    @property
    def fractions(self) -> Float[np.ndarray, "n 4"]:
        """Left, top, right and bottom edge as shares of the image's width and height, 0 ... 1.

        Images are squeezed to squares without a crop, so the shares are those of any resize.
        """
        first, extent = self.places[:, :2], self.places[:, 2:]
        return np.hstack([first / self.sizes, (first + extent) / self.sizes])


def locate(frame: pd.DataFrame, table: CaseTable, path: Path) -> Boxes:
    """Check boxes and find their images.

    A box that reaches over the edge of its image is cut off there, and one of an image that the
    table lacks is left out; both are counted in a warning.

    Args:
        frame: ``image``, ``finding``, and as text or numbers ``x``, ``y``, ``width`` and ``height``
            of each box, with ``image_width`` and ``image_height`` in pixels; indexed by the row of
            the file.
        table: table of the source.
        path: path of the file, for messages.

    Raises:
        InputError: a number is missing or wrong, a finding is unknown, a box lies outside its
            image, or the table has none of the images.
    """
    places = frame[list(_EDGES)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    wrong = ~np.isfinite(places).all(axis=1) | (places[:, 2:] <= 0).any(axis=1)
    if wrong.any():
        raise InputError(
            f"{_row(frame, wrong, path)}, has the box {_written(frame, wrong)}: x, y, width and "
            "height must be numbers, and the last two above 0."
        )
    order = {name: row for row, name in enumerate(table.images.tolist())}
    rows = frame["image"].map(order).fillna(-1).to_numpy(int)
    known = rows >= 0
    warnings = []
    if not known.any():
        raise InputError(
            f"The boxes in {path} are of images that {table.source} lacks, such as "
            f"{frame['image'].iloc[0]}: put the boxes of these images there."
        )
    if not known.all():
        warnings.append(
            f"{(~known).sum():,} of the {len(frame):,} boxes in {path} are left out: their images, "
            f"such as {frame['image'][~known].iloc[0]}, are not in the table."
        )
    frame, rows, places = frame[known], rows[known], places[known]
    names = {plain(canonical(name)): name for name in table.findings}
    findings = frame["finding"].map(lambda name: names.get(plain(canonical(name))))
    wrong = findings.isna().to_numpy()
    if wrong.any():
        name = frame["finding"][wrong].iloc[0]
        raise InputError(
            f"{_row(frame, wrong, path)}, has the finding {name!r}: "
            f"{did_you_mean(name, table.findings)}"
        )
    sizes = frame[["image_width", "image_height"]].to_numpy(float)
    first, last = places[:, :2].clip(0, sizes), (places[:, :2] + places[:, 2:]).clip(0, sizes)
    wrong = (last <= first).any(axis=1)
    if wrong.any():
        width, height = sizes[wrong][0]
        raise InputError(
            f"{_row(frame, wrong, path)}, has the box {_written(frame, wrong)} outside its image "
            f"of {width:g} x {height:g} pixels: give x and y of its upper left corner in pixels "
            "of the original image."
        )
    inside = np.hstack([first, last - first])
    cut = (np.abs(inside - places) > 0.5).any(axis=1)  # less than a pixel is rounding
    if cut.any():
        warnings.append(
            f"{cut.sum():,} boxes in {path} reach over the edge of their image, such as that of "
            f"{frame['image'][cut].iloc[0]}, and are cut off there."
        )
    return Boxes(rows, findings.to_numpy(str), inside, sizes, tuple(warnings))


def concatenated(several: Sequence[Boxes]) -> Boxes:
    """Join boxes of the same table."""
    joined = {
        name: np.concatenate([getattr(boxes, name) for boxes in several])
        for name in ("rows", "findings", "places", "sizes")
    }
    return Boxes(**joined, warnings=tuple(text for boxes in several for text in boxes.warnings))


def _row(frame: pd.DataFrame, wrong: np.ndarray, path: Path) -> str:
    """Return the beginning of a sentence on the first wrong row."""
    return f"The table {path}, row {frame.index[wrong][0]} ({frame['image'][wrong].iloc[0]})"


def _written(frame: pd.DataFrame, wrong: np.ndarray) -> str:
    """Return the numbers of the first wrong box."""
    return repr(", ".join(str(value) for value in frame[list(_EDGES)][wrong].iloc[0]))
