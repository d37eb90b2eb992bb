"""Find and parse the tables of sources: helpers of their loaders."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int16

from data_pipelines.errors import InputError

# Errors of gzip, csv and text have no common base class.
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error)
_OLDEST = 120  # years; larger ones, 148 and above, are typing errors


def given_file(csv: str, directory: Path, kind: str, remedy: str) -> Path:
    """Find the file that ``config.data.csv`` names.

    Args:
        csv: a path, also looked for in ``directory``; not empty.
        directory: folder of the data.
        kind: the file's kind for the error message.
        remedy: end of the error message.

    Raises:
        InputError: there is no such file.
    """
    for path in (Path(csv), directory / csv):
        if path.is_file():
            return path
    raise InputError(f"The {kind} {csv} (config.data.csv) does not exist: {remedy}.")


def whole_years(ages: pd.Series) -> Int16[np.ndarray, " n"]:
    """Parse ages such as '58' in years; -1 if unknown."""
    years = pd.to_numeric(ages, errors="coerce")
    return years.where(years.between(0, _OLDEST), -1).to_numpy().astype(np.int16)
