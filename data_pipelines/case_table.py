"""The table of a source: what is known of every image, whether it is present or not."""

import dataclasses

import numpy as np
from jaxtyping import Bool

from data_pipelines.image_store import ImageStore


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
        views: ``[n]`` strings such as ``PA`` and ``AP``; empty for unknown.
        sexes: ``[n]`` strings ``F``, ``M``; empty for unknown.
        ages: ``[n]`` int16 years; -1 for unknown.
        store: the pixels of the images that are present.
        simulated: whether the images are drawn rather than acquired.
    """

    source: str
    findings: tuple[str, ...]
    images: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    official_part: np.ndarray
    views: np.ndarray
    sexes: np.ndarray
    ages: np.ndarray
    store: ImageStore
    simulated: bool = False

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Whether the image is there."""
        return self.store.present

    @property
    def abnormal(self) -> Bool[np.ndarray, " n"]:
        """Whether the image has at least one finding."""
        return (self.labels == 1).any(axis=1)
