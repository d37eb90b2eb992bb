"""List the findings of ChestX-ray14 in the order of all label columns, and match names."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

NIH_FINDINGS = (
    "Atelectasis",
    "Consolidation",
    "Infiltration",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pneumonia",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Nodule",
    "Mass",
    "Hernia",
)
NO_FINDING = "No Finding"


def columns_of(wanted: Sequence[str], known: Sequence[str]) -> Int[np.ndarray, " wanted"]:
    """Return the column of each wanted finding among the known ones; -1 where it is absent.

    Names are compared without case, and ``_`` and ``-`` count as spaces.
    """
    columns = {_plain(name): column for column, name in enumerate(known)}
    return np.array([columns.get(_plain(name), -1) for name in wanted], int)


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
