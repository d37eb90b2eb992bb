"""What the loaders of sources share: where a table is, what reading it raises, and ages."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int16

from data_pipelines.errors import InputError

# Errors of gzip, csv and text have no common base.
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error)
_OLDEST = 120  # years; tables have typing errors of 148 and above


def given_file(csv: str, directory: Path, kind: str, remedy: str) -> Path:
    """The file that ``config.data.csv`` names: a path, also looked for in ``directory``.

    Args:
        csv: the key's value, not empty.
        directory: folder of the data.
        kind: what the sentence calls the file.
        remedy: what it says can be done.

    Raises:
        InputError: it is in neither place.
    """
    for path in (Path(csv), directory / csv):
        if path.is_file():
            return path
    raise InputError(f"The {kind} {csv} (config.data.csv) does not exist: {remedy}.")


def whole_years(ages: pd.Series) -> Int16[np.ndarray, " n"]:
    """Ages from text such as '58'; -1 for what is none."""
    years = pd.to_numeric(ages, errors="coerce")
    return years.where(years.between(0, _OLDEST), -1).to_numpy().astype(np.int16)
