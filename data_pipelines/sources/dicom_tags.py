"""Read view, sex, age and size from the headers of DICOM files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int16

from data_pipelines.images.decoders import quiet_decoders
from data_pipelines.progress import progress
from data_pipelines.sources.csv_tables import sex_letters, whole_years

_TAGS = ("ViewPosition", "PatientSex", "PatientAge")
_SUFFIXES = (".dcm", ".dicom")


def read_tags(
    files: Mapping[int, str | Path], n: int
) -> tuple[np.ndarray, np.ndarray, Int16[np.ndarray, " n"]]:
    """Return view, sex and age of each image, unknown where no DICOM file tells them.

    Args:
        files: file of each image that is present, by position.
        n: number of images.
    """
    found = pd.DataFrame("", index=range(n), columns=list(_TAGS), dtype=str)
    if read := _headers(files, _TAGS):
        found.loc[list(read)] = np.array(list(read.values()), object)
    return (
        found["ViewPosition"].to_numpy(str),
        sex_letters(found["PatientSex"]),
        whole_years(found["PatientAge"]),
    )


def read_sizes(files: Mapping[int, str | Path]) -> dict[int, tuple[int, int]]:
    """Return width and height in pixels of each image whose DICOM file tells them."""
    read = _headers(files, ("Columns", "Rows"))
    return {
        row: (int(width), int(height))
        for row, (width, height) in read.items()
        if width.isdigit() and height.isdigit()
    }


def _headers(files: Mapping[int, str | Path], tags: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return the text of tags in each DICOM file; see ``_header``."""
    known = {
        row: path
        for row, path in ((row, Path(file)) for row, file in files.items())
        if path.suffix.lower() in _SUFFIXES and path.is_file()  # a pipe may wait forever
    }
    quiet_decoders()
    return {
        row: _header(path, tags)
        for row, path in progress(known.items(), desc="reading headers", unit="files")
    }


def _header(path: Path, tags: Sequence[str]) -> tuple[str, ...]:
    """Return the text of each tag; empty where a file is damaged, which its check reports."""
    try:
        import pydicom

        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
        return tuple(str(header.get(tag) or "").strip() for tag in tags)
    except Exception:  # pydicom raises errors of many kinds at damage
        return ("",) * len(tags)
