"""Read a user's own folder of images and its table of findings.

``labels.csv`` has one line for each image and a header that names these columns:

| column | content |
| --- | --- |
| ``image`` | path of the image file below the folder, written as on the disk |
| ``patient`` (optional) | any text or number; images of one patient have the same |
| ``split`` (optional) | ``train``, ``val`` or ``test``: the split under the rule ``official`` |
| ``view``, ``sex``, ``age`` (optional) | for subgroups: ``PA`` ..., ``F`` or ``M``, years |
| any other | a finding: 1 present, 0 absent, empty or -1 unknown |
"""

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.images.store import ImageFiles
from data_pipelines.sources.csv_tables import READ_ERRORS, given_file, whole_years
from data_pipelines.tables.case_table import SIMULATED_MARKER, CaseTable
from data_pipelines.tables.findings import NO_FINDING

TABLE = "labels.csv"
PARTS = ("train", "val", "test")
_RESERVED = ("image", "patient", "split", "view", "sex", "age")
# pandas writes a column of integers with gaps as floats.
_LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1, "": -1, "nan": -1, "NaN": -1}
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


def load(directory: Path, csv: str = "") -> CaseTable:
    """Read the table, and check which of its images are present.

    Args:
        directory: folder with ``labels.csv`` and the images, anywhere below. A file
            ``SIMULATED.txt`` marks simulated images.
        csv: table to read in place of ``labels.csv``: a path, also looked for in ``directory``.

    Returns:
        The table, sorted by image name. Findings are in the order of their columns. Patients are
        numbered by their rank among the sorted distinct values of ``patient``; without that column
        each image is its own patient, and a warning says so. Without ``split`` the rule
        ``official`` splits by patient, like ``patient``.

    Raises:
        InputError: the folder, table, a column, a line or a value is missing or wrong.
    """
    directory = Path(directory)
    path = _table_path(directory, csv)
    rows = _sorted_by_image(_read(path), path)
    images = rows["image"].to_numpy(str)
    findings = tuple(name for name in rows.columns if name not in _RESERVED)
    patients, names = _patients(rows, path)
    known = bool(names)
    return CaseTable(
        source="csv_folder",
        findings=findings,
        images=images,
        patients=patients,
        labels=_labels(rows, findings, path),
        official_part=_parts(rows, path),
        views=_column(rows, "view").to_numpy(str),
        sexes=_column(rows, "sex").str.lower().map(_SEXES).fillna("").to_numpy(str),
        ages=whole_years(_column(rows, "age")),
        store=ImageFiles(images, _files(directory, images)),
        simulated=(directory / SIMULATED_MARKER).exists(),
        official_known="split" in rows.columns,
        patients_known=known,
        patient_names=names,
        warnings=() if known else (_no_patients(path),),
    )


def _no_patients(path: Path) -> str:
    return (
        f"The table {path} has no column 'patient': each image counts as a patient of its own, so "
        "images of one patient may be in several splits and scores may be too high."
    )


def _table_path(directory: Path, csv: str) -> Path:
    if not directory.is_dir():
        raise InputError(
            f"The data folder {directory} does not exist: name the folder of your images and its "
            f"{TABLE} with --config.data.dir."
        )
    if csv:
        remedy = f"correct the path, or leave the key empty to read the {TABLE} of the data folder"
        return given_file(csv, directory, "table", remedy)
    path = directory / TABLE
    if not path.is_file():
        raise InputError(
            f"The data folder {directory} has no {TABLE}: write one with the column 'image' and "
            "one column for each finding, or name another table with --config.data.csv."
        )
    return path


def _read(path: Path) -> pd.DataFrame:
    """Read all cells as text; the index is the line number."""
    # With a header, pandas would rename a column that occurs twice.
    try:
        cells = pd.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    except READ_ERRORS as error:
        raise InputError(
            f"The table {path} cannot be read as a csv file ({str(error).strip()}): save it as "
            "comma-separated text in UTF-8, with the same number of commas in every line."
        ) from error
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    cells.index += 1
    header = cells.iloc[0].tolist()
    _check_header(header, path)
    rows = cells.iloc[1:].set_axis(header, axis="columns")
    rows = rows[(rows != "").any(axis="columns")]
    if rows.empty:
        raise InputError(f"The table {path} has no lines below its header: add one for each image.")
    return rows


def _check_header(header: list[str], path: Path) -> None:
    if "image" not in header:
        raise InputError(
            f"The table {path} has no column 'image': its first line must name the columns, "
            "separated by commas, and 'image' gives each file's path below the folder."
        )
    for name in header:
        if not name:
            raise InputError(
                f"The table {path}, column {header.index(name) + 1}, has no name in the first "
                "line: name it, or remove it (pandas writes no index with index=False)."
            )
        if header.count(name) > 1:
            raise InputError(f"The table {path} has two columns {name!r}: remove or rename one.")
        if name not in _RESERVED and name.lower() in _RESERVED:
            raise InputError(f"The table {path} has a column {name!r}: write it {name.lower()!r}.")
        if name == NO_FINDING:
            raise InputError(
                f"The table {path} has a column {name!r}, which is not a finding: remove it, as an "
                "image with 0 in every column is one without findings."
            )
    if not set(header) - set(_RESERVED):
        raise InputError(
            f"The table {path} has no column for a finding: add one with 0, 1 or nothing in each "
            "line."
        )


def _sorted_by_image(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Sort the rows by image name, with ``./a//b.png`` written ``a/b.png``."""
    for line, name in rows["image"].items():
        place = PurePosixPath(name)
        if not place.parts or len(name.splitlines()) != 1:
            raise InputError(
                f"The table {path}, line {line}, gives the image {name!r}: write the path of a "
                "file below the folder."
            )
        if place.is_absolute() or ".." in place.parts:
            raise InputError(
                f"The table {path}, line {line}, gives the image {name!r}, which leaves the data "
                "folder: write its path below the folder, and set --config.data.dir to match."
            )
    names = rows["image"].map(lambda name: PurePosixPath(name).as_posix())
    twice = names.duplicated()
    if twice.any():
        line = rows.index[twice][0]
        raise InputError(
            f"The table {path} lists {names[line]} a second time on line {line}: remove one of the "
            "two lines."
        )
    return rows.assign(image=names).sort_values("image", kind="stable")


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    return rows[name] if name in rows else pd.Series("", index=rows.index, dtype=str)


def _patients(rows: pd.DataFrame, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Assign each patient a number, ``[n]`` int32; no names without the column."""
    if "patient" not in rows:
        return np.arange(len(rows), dtype=np.int32), ()
    empty = rows["patient"] == ""
    if empty.any():
        line = rows.index[empty].min()
        raise InputError(
            f"The table {path}, line {line} ({rows.at[line, 'image']}), names no patient: fill the "
            "column 'patient' in every line, or remove it."
        )
    names, numbers = np.unique(rows["patient"].to_numpy(str), return_inverse=True)
    return numbers.astype(np.int32), tuple(names.tolist())


def _parts(rows: pd.DataFrame, path: Path) -> np.ndarray:
    """Return the split column, ``[n]`` strings; the split rule checks empty ones."""
    parts = _column(rows, "split")
    wrong = ~parts.isin(("", *PARTS))
    if wrong.any():
        line = rows.index[wrong].min()
        word = parts[line]
        raise InputError(
            f"The table {path}, line {line} ({rows.at[line, 'image']}), has {word!r} in the column "
            f"'split': {did_you_mean(word, PARTS)}"
        )
    return parts.to_numpy(str)


def _labels(rows: pd.DataFrame, findings: tuple[str, ...], path: Path) -> np.ndarray:
    """Return the labels, ``[n, F]`` int8: 1, 0, or -1 for unknown."""
    labels = np.empty((len(rows), len(findings)), np.int8)
    for column, name in enumerate(findings):
        values = rows[name].map(_LABELS)
        if values.isna().any():
            line = rows.index[values.isna()].min()
            raise InputError(
                f"The table {path}, line {line} ({rows.at[line, 'image']}), has "
                f"{rows.at[line, name]!r} in the column {name!r}: every column but "
                f"{', '.join(_RESERVED)} is a finding and takes 1, 0, or -1 or nothing for "
                "unknown."
            )
        labels[:, column] = values
        if not (labels[:, column] >= 0).any():
            raise InputError(
                f"The table {path} has no label of the finding {name!r}: fill the column with 0 "
                "and 1 where they are known, or remove it."
            )
    return labels


def _files(directory: Path, images: np.ndarray) -> dict[int, Path]:
    paths = ((row, directory / name) for row, name in enumerate(images.tolist()))
    return {row: path for row, path in paths if os.path.isfile(path)}
