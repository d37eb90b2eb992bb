"""Find and parse the tables of sources: helpers of their loaders."""

import csv
import gzip
import io
import re
import zipfile
import zlib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int16

from data_pipelines.errors import InputError
from data_pipelines.tables.findings import plain

# Errors of gzip, csv and text have no common base class.
READ_ERRORS = (OSError, EOFError, ValueError, csv.Error, zlib.error)
_PER_YEAR = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
_AGE = r"^(\d+(?:\.\d*)?)\s*(?:([YMWD])(?:EARS?|O|RS?|ONTHS?|OS?|EEKS?|KS?|AYS?)?\.?)?$"
_OLDEST = 120  # years; larger ones, 148 and above, are typing errors
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


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


def check_fields(path: Path) -> None:
    """Check that no line is shorter than the header, less the header's empty fields at its end.

    pandas fills such a line up, so that values may stand in the columns before their own.

    Args:
        path: a csv file, compressed if it ends in ``.gz`` or ``.zip``.

    Raises:
        InputError: a line is too short.
    """
    with _opened(path) as binary:
        lines = csv.reader(io.TextIOWrapper(binary, "utf-8-sig", newline=""), skipinitialspace=True)
        needed = max(place for place, name in enumerate(next(lines), 1) if name.strip())
        for fields in lines:
            if len(fields) < needed and any(map(str.strip, fields)):
                raise InputError(
                    f"The table {path}, line {lines.line_num}, has {len(fields)} fields where "
                    f"{needed} are expected: add the missing commas, as an empty field means "
                    "unknown."
                )


def _opened(path: Path) -> io.BufferedIOBase:
    if path.suffix != ".zip":
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    with zipfile.ZipFile(path) as archive:
        return archive.open(archive.namelist()[0])


def whole_years(ages: pd.Series) -> Int16[np.ndarray, " n"]:
    """Parse ages in whole years, such as '58', DICOM's '058Y' or '18 months'; -1 if unknown."""
    codes, texts = pd.factorize(ages.astype(str))
    parts = pd.Series(texts, dtype=str).str.strip().str.upper().str.extract(_AGE)
    years = pd.to_numeric(parts[0], errors="coerce") / parts[1].fillna("").map(_PER_YEAR)
    return years.where(years.between(0, _OLDEST), -1).to_numpy().astype(np.int16)[codes]


def sex_letters(sexes: pd.Series) -> np.ndarray:
    """Parse 'F', 'female', 'M' and 'male' in any case, ``[n]`` strings; empty if unknown."""
    return sexes.str.strip().str.casefold().map(_SEXES).fillna("").to_numpy(str)


def merge_patients(names: np.ndarray, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Write patients that a spreadsheet turned into numbers as they were: '12.0' as '12'.

    Args:
        names: ``[n]`` strings.
        path: path of the table, for the warning.

    Returns:
        The names, and a warning where different ones may be the same patient: equal as numbers, or
        but for case and separators.
    """
    distinct, rank = np.unique(names, return_inverse=True)
    written = [re.sub(r"^(\d+)\.0+$", r"\1", name) for name in distinct]
    alike: dict[str, str] = {}
    pairs = []
    for name in sorted(set(written)):
        other = alike.setdefault(patient_key(name), name)
        if other != name:
            pairs.append((other, name))
    warning = (
        f"The table {path} has patients that differ only in spelling, such as {pairs[0][0]!r} and "
        f"{pairs[0][1]!r} ({len(pairs):,} pairs): they count as different, so write them alike if "
        "they are the same, or splits may share patients."
        if pairs
        else ""
    )
    return np.array(written)[rank.reshape(-1)], (warning,) if warning else ()


def patient_key(name: str) -> str:
    """Return a patient's name as it is compared: numbers by value, others without separators."""
    try:
        return str(Decimal(name).normalize())
    except ArithmeticError:
        name = re.sub(r"[0-9]+", lambda digits: digits[0].lstrip("0") or "0", plain(name))
        return re.sub(r"(?<![0-9]) | (?![0-9])", "", name)
