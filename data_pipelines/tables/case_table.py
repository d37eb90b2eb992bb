"""Hold the labels and metadata of every image of a source."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from data_pipelines.images.store import ImageStore

# A file with this name marks a folder of simulated images.
SIMULATED_MARKER = "SIMULATED.txt"
# Label of a finding that a report calls possible; ``sources.load`` replaces it.
UNCERTAIN = -2


@dataclasses.dataclass(frozen=True)
class CaseTable:
    """List all cases of a source, sorted by image name.

    The row number is the case id. Images without a file have a row, too.

    Attributes:
        source: registry name of the source, e.g. ``nih_chest_xray14``.
        findings: names of the F findings, in the order of the label columns.
        images: ``[n]`` image names (strings), sorted, unique.
        patients: ``[n]`` int32 patient numbers, not negative.
        labels: ``[n, F]`` int8: 1 present, 0 absent, -1 unknown.
        official_part: ``[n]`` strings, the split in the source's own lists (``train_val``,
            ``test``, or ``train``, ``val``, ``test``); empty where they name none.
        views: ``[n]`` strings such as ``PA`` and ``AP``; empty for unknown.
        sexes: ``[n]`` strings ``F``, ``M``; empty for unknown.
        ages: ``[n]`` int16 years; -1 for unknown.
        store: the pixels of the images that are present.
        simulated: whether the images are drawn by a program.
        official_known: whether the source has its own splits; if not, rule ``official`` splits by
            patient.
        official_files: files that state the source's splits, for the error where they are absent.
        patients_known: whether the source identifies patients; if not, each image counts as one.
        patient_names: the source's name of each patient, by number; empty where it numbers them.
        warnings: limitations of the data, a sentence each; the commands print them.
        sets: the tables that it was merged from, by name; empty for one set.
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
    official_files: tuple[str, ...] = ()
    patients_known: bool = True
    patient_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sets: "Mapping[str, CaseTable]" = dataclasses.field(default_factory=dict)

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Whether each image is present."""
        return self.store.present

    @property
    def abnormal(self) -> Bool[np.ndarray, " n"]:
        """Whether each image has at least one finding."""
        return (self.labels == 1).any(axis=1)

    @property
    def origin(self) -> dict[str, Any]:
        """Return source, ``simulated`` and ``patients_known``; of a merged table also the sets'."""
        sets = {name: own.source for name, own in self.sets.items()}
        return {
            "source": self.source,
            "simulated": self.simulated,
            "patients_known": self.patients_known,
            **({"sets": sets} if sets else {}),
        }

    def patient_name(self, number: int | np.integer) -> str:
        """Return the source's name of a patient."""
        return self.patient_names[number] if self.patient_names else str(number)


def rows_of(table: CaseTable, name: str) -> Int[np.ndarray, " rows"]:
    """Return the rows of a merged table that hold the images of a set, in the order of that set."""
    return np.searchsorted(table.images, [f"{name}/{image}" for image in table.sets[name].images])
