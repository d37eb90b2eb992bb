"""The table of a source: what is known of every image, whether its file is present or not."""

import dataclasses
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class CaseTable:
    """All cases of a source, sorted by image name, so that a row's number is its case id.

    Attributes:
        source: registry name of the source, e.g. ``nih_chest_xray14``.
        findings: names of the F findings, in the order of the label columns.
        images: ``[n]`` image names (strings), sorted, unique.
        patients: ``[n]`` int32 patient numbers, not negative.
        labels: ``[n, F]`` int8: 1 present, 0 absent, -1 unknown.
        official_part: ``[n]`` strings, the part that the source's own lists give (``train_val``,
            ``test``, or ``train``, ``val``, ``test``), or an empty string where they give none.
        files: path of the file of each image that is present, by image name.
        simulated: whether the images are drawn rather than acquired.
    """

    source: str
    findings: tuple[str, ...]
    images: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    official_part: np.ndarray
    files: dict[str, Path]
    simulated: bool = False

    @property
    def present(self) -> np.ndarray:
        """``[n]`` bool: whether the image's file is there."""
        return np.fromiter((name in self.files for name in self.images), bool, len(self.images))

    @property
    def abnormal(self) -> np.ndarray:
        """``[n]`` bool: whether the image has at least one finding."""
        return (self.labels == 1).any(axis=1)
