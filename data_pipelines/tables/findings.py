"""List the findings of ChestX-ray14 in the order of all label columns, and match names."""

import re
import unicodedata
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
_SEPARATORS = re.compile("[_.\u2010-\u2015\u2212-]")  # the others are dashes


def columns_of(wanted: Sequence[str], known: Sequence[str]) -> Int[np.ndarray, " wanted"]:
    """Return the column of each wanted finding among the known ones; -1 where it is absent.

    Names are compared without case, and ``_``, ``-`` and ``.`` count as spaces.
    """
    columns = {plain(name): column for column, name in enumerate(known)}
    return np.array([columns.get(plain(name), -1) for name in wanted], int)


def is_no_finding(name: str) -> bool:
    """Whether a name says that nothing was found, in any spelling."""
    return plain(name).replace(" ", "") in ("nofinding", "nofindings")


def plain(name: str) -> str:
    """Return a name as it is compared: without case, separators and dashes as one space."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(_SEPARATORS.sub(" ", name).split())
