"""Measure pixels: grey levels, outliers and duplicates."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8

from data_pipelines.errors import InputError
from data_pipelines.progress import progress
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.quarantine import Entry

CONSTANT_SD = 2.0  # grey levels of 255
MOSTLY = 0.5  # of the pixels
LEAST_SIZE = 16  # pixels
OUTLIERS = {
    "nearly constant": f"SD below {CONSTANT_SD:g} grey levels",
    "mostly black": f"more than {MOSTLY:.0%} of the pixels are 0",
    "mostly saturated": f"more than {MOSTLY:.0%} of the pixels are 255",
    "unlike the mean image": "correlation with the mean image below 0: inverted, or another view",
}
_THUMBNAIL = 8
_BATCH = 32
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class ImageStatistics:
    """Hold the statistics of the images that were read.

    Attributes:
        size: side S of the squares that were read, in pixels.
        images: a row for each image, sorted by ``case_id``: ``mean`` and ``sd`` in grey levels 0 to
            255, ``black`` and ``saturated`` (shares of the pixels that are 0 and 255), ``likeness``
            (correlation with the mean image, both as 8 x 8 blocks; NaN for a constant image) and
            ``digest`` of the pixels.
        histogram: ``[256]`` pixels of each grey level.
        mean_image: ``[S, S]`` grey levels.
        refused: image and reason of unreadable images.
    """

    size: int
    images: pd.DataFrame
    histogram: np.ndarray
    mean_image: np.ndarray
    refused: list[Entry]

    @property
    def mean(self) -> float:
        """Mean of all pixels, in grey levels."""
        return float(np.average(np.arange(256), weights=self.histogram))

    @property
    def sd(self) -> float:
        """Standard deviation of all pixels, in grey levels."""
        return float(np.average((np.arange(256) - self.mean) ** 2, weights=self.histogram) ** 0.5)

    @property
    def outliers(self) -> dict[str, np.ndarray]:
        """Case ids of outliers, by the keys of ``OUTLIERS``."""
        images = self.images
        found = {
            "nearly constant": images.sd < CONSTANT_SD,
            "mostly black": images.black > MOSTLY,
            "mostly saturated": images.saturated > MOSTLY,
            "unlike the mean image": images.likeness < 0,
        }
        return {name: images.case_id[rows].to_numpy() for name, rows in found.items()}


def read_each(
    table: CaseTable, rows: Int[np.ndarray, " m"], size: int
) -> tuple[Int[np.ndarray, " k"], UInt8[np.ndarray, "k size size 1"], list[Entry]]:
    """Read the readable images; return case ids, images, and refusals."""
    try:
        return rows, table.store.read(rows, size), []
    except InputError as error:
        if len(rows) == 1:
            nothing = np.empty((0, size, size, 1), np.uint8)
            return rows[:0], nothing, [(str(table.images[rows[0]]), str(error))]
    ids, images, refused = zip(*(read_each(table, row, size) for row in rows[:, None]), strict=True)
    return np.concatenate(ids), np.concatenate(images), list(itertools.chain(*refused))


def measure_images(table: CaseTable, rows: Int[np.ndarray, " m"], size: int) -> ImageStatistics:
    """Read images once, in batches, and measure them.

    Args:
        table: the source's table.
        rows: case ids of present images, at least one.
        size: side of the squares to read, in pixels, at least 16.

    Raises:
        InputError: none of the images is readable; the text is the first one's reason.
    """
    batches = np.split(rows, range(_BATCH, len(rows), _BATCH))
    histogram, total = np.zeros(256, np.int64), np.zeros((size, size))
    frames, refused = [], []
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        measured = pool.map(lambda batch: _measure(table, batch, size), batches)
        with progress(total=len(rows), desc="reading images", unit="images") as bar:
            for batch, (frame, counts, summed, bad) in zip(batches, measured, strict=True):
                frames.append(frame)
                histogram += counts
                total += summed
                refused += bad
                bar.update(len(batch))
    finally:
        pool.shutdown(cancel_futures=True)
    images = pd.concat(frames, ignore_index=True).sort_values("case_id", ignore_index=True)
    if images.empty:
        raise InputError(refused[0][1])
    thumbnails = np.stack(images.pop("thumbnail").to_list())
    images["likeness"] = _likeness(thumbnails)
    return ImageStatistics(size, images, histogram, total / len(images), refused)


def duplicates(
    table: CaseTable, statistics: ImageStatistics, stages: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Find images with equal pixels at the size that was read.

    Args:
        table: the source's table.
        statistics: statistics of the images to compare.
        stages: for each stage, ``[n]`` strings, the splits of each image; see
            ``table_statistics.parts_of_images``.

    Returns:
        A row for each image with a duplicate: ``group`` (from 1), ``image``, ``patient``, a column
        for each stage with the image's splits, ``findings``; and for its group ``across_parts``
        (its images are in different splits), ``across_patients`` and ``findings_differ``.
    """
    images = statistics.images
    twice = images[images.digest.duplicated(keep=False)]
    rows = twice.case_id.to_numpy()
    found = pd.DataFrame(
        {
            "group": pd.factorize(twice.digest)[0] + 1,
            "image": table.images[rows],
            "patient": table.patients[rows],
            **{stage: parts[rows] for stage, parts in stages.items()},
            "findings": [_findings(table, row) for row in rows.tolist()],
        }
    )
    found["role"] = [_roles(parts[row] for parts in stages.values()) for row in rows]
    groups = found.groupby("group")
    found["across_parts"] = groups["role"].transform(lambda sets: len(set().union(*sets)) > 1)
    found["across_patients"] = groups["patient"].transform("nunique") > 1
    found["findings_differ"] = groups["findings"].transform("nunique") > 1
    return found.drop(columns="role").sort_values(["group", "image"], ignore_index=True)


def _roles(parts: Iterable[str]) -> frozenset[str]:
    """Return the splits of an image in all stages.

    The notebook's ``test_published`` is part of its test split.
    """
    return frozenset("+".join(parts).split("+")) - {"", "test_published"}


def _findings(table: CaseTable, row: int) -> str:
    return "|".join(
        f"{name}?" if label < 0 else name
        for name, label in zip(table.findings, table.labels[row], strict=True)
        if label
    )


def _measure(
    table: CaseTable, rows: np.ndarray, size: int
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, list[Entry]]:
    """Measure a batch: rows, histogram, sum of the images, refusals."""
    rows, images, refused = read_each(table, rows, size)
    pixels = images[..., 0]
    frame = pd.DataFrame(
        {
            "case_id": rows.astype(np.int64),
            "mean": pixels.mean(axis=(1, 2)),
            "sd": pixels.std(axis=(1, 2)),
            "black": (pixels == 0).mean(axis=(1, 2)),
            "saturated": (pixels == 255).mean(axis=(1, 2)),
            "digest": [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels],
            "thumbnail": list(_thumbnails(pixels)),
        }
    )
    histogram = np.bincount(pixels.ravel(), minlength=256)
    return frame, histogram, pixels.sum(axis=0, dtype=np.float64), refused


def _thumbnails(pixels: np.ndarray) -> np.ndarray:
    """Average an 8 x 8 grid of blocks, ``[k, 64]`` float32."""
    side = pixels.shape[1] // _THUMBNAIL
    whole = pixels[:, : side * _THUMBNAIL, : side * _THUMBNAIL]
    blocks = whole.reshape(-1, _THUMBNAIL, side, _THUMBNAIL, side).mean(axis=(2, 4))
    return blocks.reshape(-1, _THUMBNAIL**2).astype(np.float32)


def _likeness(thumbnails: Float[np.ndarray, "k 64"]) -> Float[np.ndarray, " k"]:
    mean = thumbnails.mean(axis=0, dtype=np.float64)
    mean -= mean.mean()
    centred = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(mean) * np.linalg.norm(centred, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # constant images have no correlation
        return np.where(scale > 0, centred @ mean / scale, np.nan)
