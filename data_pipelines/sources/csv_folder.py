"""Read a user's own folder of images and its table of findings.

``labels.csv`` has one line for each image and a header that names these columns:

| column | content |
| --- | --- |
| ``image`` | path of the image file below the folder, with or without its ending |
| ``patient`` (optional) | any text or number; images of one patient have the same |
| ``split`` (optional) | ``train``, ``val`` or ``test``: the split under the rule ``official`` |
| ``view``, ``sex``, ``age`` (optional) | for subgroups: ``PA`` ..., ``F`` or ``M``, years |
| any other | a finding: 1 present, 0 absent, empty or -1 unknown |

Names of these columns and splits are read without case, spaces, ``_``, ``-`` and ``.``, and such as
"Patient ID", "filename" or "gender" stand for them where they are absent. A column "No finding" is
no finding: where it is 1 beside a finding, the finding counts, and a warning says so.
"""

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from data_pipelines.errors import InputError, did_you_mean, listed
from data_pipelines.images.search import match_names
from data_pipelines.images.store import ImageFiles
from data_pipelines.sources.csv_tables import (
    READ_ERRORS,
    check_fields,
    given_file,
    merge_patients,
    sex_letters,
    whole_years,
)
from data_pipelines.tables.case_table import SIMULATED_MARKER, CaseTable
from data_pipelines.tables.findings import is_no_finding, plain

TABLE = "labels.csv"
PARTS = ("train", "val", "test")
_SPLITS = {name: name for name in PARTS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}
# Columns that are no findings, each with the other names that it may have.
_RESERVED = {
    "image": (
        *("image id", "image index", "image path", "image name", "image file", "image filename"),
        *("img", "img path", "file", "filename", "file path", "path", "dicom id"),
    ),
    "patient": (
        *("patient id", "patient name", "patient number", "patient no", "subject", "subject id"),
        *("case id", "pid", "mrn"),
    ),
    "split": ("subset", "partition", "set"),
    "view": ("view position", "projection"),
    "sex": ("gender", "patient sex", "patient gender"),
    "age": ("patient age",),
}
# pandas writes a column of integers with gaps as floats.
_LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1, "": -1, "nan": -1, "NaN": -1}


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
    rows = _sorted_by_image(_read(path), directory, path)
    images = rows["image"].to_numpy(str)
    findings = tuple(
        name for name in rows.columns if name not in _RESERVED and not is_no_finding(name)
    )
    labels = _labels(rows, findings, path)
    patients, names, alike = _patients(rows, path)
    known = bool(names)
    files, renamed = _files(directory, images)
    return CaseTable(
        source="csv_folder",
        findings=findings,
        images=images,
        patients=patients,
        labels=labels,
        official_part=_parts(rows, path),
        views=_column(rows, "view").to_numpy(str),
        sexes=sex_letters(_column(rows, "sex")),
        ages=whole_years(_column(rows, "age")),
        store=ImageFiles(images, files),
        simulated=(directory / SIMULATED_MARKER).exists(),
        official_known="split" in rows.columns,
        patients_known=known,
        patient_names=names,
        warnings=(
            *(() if known else (_no_patients(path),)),
            *alike,
            *renamed,
            *_contradictions(rows, labels, path),
            *_complements(findings, labels, path),
        ),
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
        check_fields(path)
    except READ_ERRORS as error:
        raise InputError(
            f"The table {path} cannot be read as a csv file ({str(error).strip()}): save it as "
            "comma-separated text in UTF-8, with the same number of commas in every line."
        ) from error
    cells.index += 1
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    header = _reserved_names(cells.iloc[0].tolist())
    _check_header(header, path)
    rows = cells.iloc[1:].set_axis(header, axis="columns")
    rows = rows[(rows != "").any(axis="columns")]
    if rows.empty:
        raise InputError(f"The table {path} has no lines below its header: add one for each image.")
    return rows


def _reserved_names(header: list[str]) -> list[str]:
    """Write reserved names as they are known, of several for one column the first."""
    compared = [plain(name).replace(" ", "") for name in header]
    known = {}
    for name, others in _RESERVED.items():
        spelt = (other.replace(" ", "") for other in (name, *others))
        known[next((text for text in spelt if text in compared), name)] = name
    return [known.get(text, name) for text, name in zip(compared, header, strict=True)]


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
        if [plain(other) for other in header].count(plain(name)) > 1:
            raise InputError(f"The table {path} has two columns {name!r}: remove or rename one.")
    if not any(name not in _RESERVED and not is_no_finding(name) for name in header):
        raise InputError(
            f"The table {path} has no column for a finding: add one with 0, 1 or nothing in each "
            "line."
        )


def _sorted_by_image(rows: pd.DataFrame, directory: Path, path: Path) -> pd.DataFrame:
    """Sort the rows by image name, with ``./a//b.png`` written ``a/b.png``.

    Backslashes separate folders where that finds the file.
    """

    def slashed(name: str) -> str:
        other = name.replace("\\", "/")
        there = other != name and not os.path.exists(directory / name)
        return other if there and os.path.isfile(directory / other) else name

    rows = rows.assign(image=rows["image"].map(slashed))
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


def _patients(
    rows: pd.DataFrame, path: Path
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Return each patient's number, ``[n]`` int32, names (none without the column) and warnings."""
    if "patient" not in rows:
        return np.arange(len(rows), dtype=np.int32), (), ()
    empty = rows["patient"] == ""
    if empty.any():
        line = rows.index[empty].min()
        raise InputError(
            f"The table {path}, line {line} ({rows.at[line, 'image']}), names no patient: fill the "
            "column 'patient' in every line, or remove it."
        )
    written, warnings = merge_patients(rows["patient"].to_numpy(str), path)
    names, numbers = np.unique(written, return_inverse=True)
    return numbers.astype(np.int32), tuple(names.tolist()), warnings


def _parts(rows: pd.DataFrame, path: Path) -> np.ndarray:
    """Return the split column, ``[n]`` strings; the split rule checks empty ones."""
    words = _column(rows, "split")
    parts = words.map(lambda word: _SPLITS.get(plain(word).replace(" ", ""), "") if word else "")
    wrong = (parts == "") & (words != "")
    if wrong.any():
        line = rows.index[wrong].min()
        word = words[line]
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


def _contradictions(rows: pd.DataFrame, labels: np.ndarray, path: Path) -> list[str]:
    """Return a warning of each column of no finding that is 1 beside a finding."""
    found = []
    for name in filter(is_no_finding, rows.columns):
        both = (_labels(rows, (name,), path)[:, 0] == 1) & (labels == 1).any(axis=1)
        if both.any():
            line = rows.index[both].min()
            found.append(
                f"The table {path} has {both.sum():,} images with 1 in {name!r} and in a finding, "
                f"such as {rows.at[line, 'image']} on line {line}: the finding counts, so correct "
                "them if it should not."
            )
    return found


def _complements(findings: tuple[str, ...], labels: np.ndarray, path: Path) -> list[str]:
    """Return a warning of the columns that are 1 exactly where no other is."""
    found, present = [], (labels == 1).sum(axis=1)
    for name, mine in zip(findings, labels.T, strict=True):
        known, others = mine >= 0, present > (mine == 1)
        if len(np.unique(mine[known])) == 2 and ((mine == 1) != others)[known].all():
            found.append(repr(name))
    if not found:
        return []
    return [
        f"In the table {path} each of the columns {listed(found)} is 1 exactly where all others "
        "are 0: if one means that nothing was found, remove it, or every image counts as abnormal."
    ]


def _files(directory: Path, images: np.ndarray) -> tuple[dict[int, Path], list[str]]:
    """Return the files of the images, and a warning of those whose names are spelt otherwise."""
    files, twins = match_names(directory, images.tolist())
    found = {row: files[name] for row, name in enumerate(images.tolist()) if name in files}
    if not twins:
        return found, []
    name = min(twins)
    return found, [
        f"{len(twins):,} images are found under another spelling, such as {twins[name]} for "
        f"{name!r}."
    ]
