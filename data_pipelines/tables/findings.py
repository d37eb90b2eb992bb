"""Hold one vocabulary of findings: names, synonyms of data sets, and names that are not the same.

Labels of different sets are matched by these names, never by their position.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

# ChestX-ray14, in the order of all its label columns.
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

# Each set's other name of a finding; a name that no set writes otherwise needs no entry.
SYNONYMS = {
    "Pleural Effusion": "Effusion",  # CheXpert, MIMIC-CXR, PadChest, VinDr-CXR
    "Pulmonary Edema": "Edema",  # PadChest
    "Pulmonary Fibrosis": "Fibrosis",  # PadChest, VinDr-CXR; NIH's finding is of the lung, too
    "Infiltrate": "Infiltration",  # boxes of ChestX-ray14
    "Infiltrates": "Infiltration",  # PadChest
    "Airspace Opacity": "Lung Opacity",  # first release of MIMIC-CXR, Google's labels of NIH images
    "Nodule or Mass": "Nodule/Mass",  # Google's labels of NIH images
    "Interstitial Lung Disease": "ILD",  # VinDr-CXR
    "Enlarged PA": "Pulmonary Artery Enlargement",  # VinDr-CXR
    "Chronic Obstructive Pulmonary Disease": "COPD",  # VinDr-CXR
}

# Pairs that look alike and are labelled apart, with the difference.
NEAR_MISSES = (
    ("Lung Opacity", "Infiltration", "infiltrates are one of several kinds of opacity"),
    ("Lung Opacity", "Consolidation", "consolidation is one of several kinds of opacity"),
    ("Lung Opacity", "Pneumonia", "most opacities have another cause"),
    ("Infiltration", "Consolidation", "an infiltrate need not fill the air spaces"),
    ("Lung Lesion", "Nodule", "a lesion may also be a mass, a cavity or a tumour"),
    ("Lung Lesion", "Mass", "a lesion may also be a nodule, a cavity or a tumour"),
    ("Lung Lesion", "Nodule/Mass", "a lesion may also be a cavity"),
    ("Nodule/Mass", "Nodule", "the joint label does not tell which of the two there is"),
    ("Nodule/Mass", "Mass", "the joint label does not tell which of the two there is"),
    ("Lung Tumor", "Mass", "a tumour is a diagnosis, a mass is a sign"),
    ("Enlarged Cardiomediastinum", "Cardiomegaly", "the mediastinum may be wide and the heart not"),
    ("Pleural Other", "Pleural_Thickening", "it also stands for scars of the pleura"),
    ("Pleural Other", "Fibrosis", "it stands for scars of the pleura, not of the lung"),
    ("ILD", "Fibrosis", "interstitial disease need not leave scars"),
    ("Aortic Enlargement", "Aortic Elongation", "an elongated aorta need not be wide"),
    ("Rib Fracture", "Fracture", "other bones break, too"),
    ("Clavicle Fracture", "Fracture", "other bones break, too"),
    ("Calcification", "Granuloma", "vessels and pleura calcify, too"),
)


def columns_of(wanted: Sequence[str], known: Sequence[str]) -> Int[np.ndarray, " wanted"]:
    """Return the column of each wanted finding among the known ones; -1 where it is absent.

    Names are compared without case, and ``_``, ``-`` and ``.`` count as spaces. A synonym counts
    where the name itself is absent.
    """
    columns = {plain(name): column for column, name in enumerate(known)}
    synonyms = {plain(canonical(name)): column for column, name in enumerate(known)}
    return np.array(
        [columns.get(plain(w), synonyms.get(plain(canonical(w)), -1)) for w in wanted], int
    )


def canonical(name: str) -> str:
    """Return the vocabulary's name of a finding or synonym in any spelling; else the name."""
    return _NAMES.get(plain(name), name)


def near_misses(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return why a wanted finding is not the known one that looks like it, for each such pair.

    Findings that are both wanted and known are left out.
    """
    ours, theirs = ({plain(canonical(name)) for name in names} for names in (wanted, known))
    return [
        f"{first} is not {second}: {reason}"
        for first, second, reason in NEAR_MISSES
        for a, b in [(plain(first), plain(second))]
        if {a, b} & (ours - theirs) and {a, b} & (theirs - ours)
    ]


def is_no_finding(name: str) -> bool:
    """Whether a name says that nothing was found, in any spelling."""
    return plain(name).replace(" ", "") in ("nofinding", "nofindings")


def plain(name: str) -> str:
    """Return a name as it is compared: without case, separators and dashes as one space."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(_SEPARATORS.sub(" ", name).split())


_NAMES = {plain(name): name for name in NIH_FINDINGS}
_NAMES |= {plain(other): name for other, name in SYNONYMS.items()}
