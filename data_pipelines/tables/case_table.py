"""The table of a source: what is known of every image, whether it is present or not."""

import dataclasses

import numpy as np
from jaxtyping import Bool

from data_pipelines.images.store import ImageStore

# A file of this name marks a folder of images that are drawn rather than acquired.
SIMULATED_MARKER = "SIMULATED.txt"


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
        official_known: whether the source gives parts at all; if not, rule ``official`` divides by
            patient.
        patients_known: whether the source tells patients apart; if not, each image is its own.
        patient_names: what the source calls each patient, by number; empty where it numbers them.
        warnings: what a user has to know of these data, a sentence each; the commands print them.
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
    official_known: bool = True
    patients_known: bool = True
    patient_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Whether the image is there."""
        return self.store.present

    @property
    def abnormal(self) -> Bool[np.ndarray, " n"]:
        """Whether the image has at least one finding."""
        return (self.labels == 1).any(axis=1)

    def patient_name(self, number: int | np.integer) -> str:
        """What the source calls a patient."""
        return self.patient_names[number] if self.patient_names else str(number)
