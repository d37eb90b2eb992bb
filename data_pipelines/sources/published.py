"""Find and read the tables of published sets, as users have them on disk."""

import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int32

from data_pipelines.errors import InputError
from data_pipelines.images.search import SUFFIXES, spelling_key, walk
from data_pipelines.sources.csv_tables import READ_ERRORS, check_fields, given_file
from data_pipelines.tables.findings import plain

VIEWS = ("frontal", "all")  # values of config.data.views
# Sources whose images are those of ChestX-ray14, under names of their own.
OF_NIH = ("nih_chest_xray14", "chestmnist", "rsna_pneumonia", "siim_pneumothorax")
_ERRORS = (*READ_ERRORS, zipfile.BadZipFile)
_SHOWN = 5  # views that a message names


def find_table(directory: Path, names: Iterable[str]) -> Path | None:
    """Find a table in a folder or in those directly in it, plain or compressed.

    Args:
        directory: folder of the data.
        names: names or patterns of names, such as ``train.csv``; the first that is there counts,
            and of several files for one the last by name.
    """
    for name in names:
        for place in (name, f"*/{name}"):
            found = [path for end in ("", ".gz", ".zip") for path in directory.glob(place + end)]
            if found := list(filter(Path.is_file, found)):  # reading a pipe may wait forever
                return max(found)
    return None


def check_folder(directory: Path, homepage: str) -> None:
    """Check that there is a data folder.

    Raises:
        InputError: there is none; the page to download the set from is named.
    """
    if not directory.is_dir():
        raise InputError(
            f"The data folder {directory} does not exist: download the set from {homepage} and "
            "name its folder with --config.data.dir."
        )


def need_table(directory: Path, csv: str, names: Sequence[str], homepage: str) -> Path:
    """Find the table of a set.

    Args:
        directory: folder of the data.
        csv: table to read in its place, a path that is also looked for in ``directory``; or empty.
        names: see ``find_table``.
        homepage: page to download the set from, for the error.

    Raises:
        InputError: there is no such folder or table.
    """
    check_folder(directory, homepage)
    if csv:
        return given_file(csv, directory, "table", f"name {names[0]} or leave the key empty")
    path = find_table(directory, names)
    if path is None:
        raise InputError(
            f"The data folder {directory} has no {names[0]}, .gz or .zip, nor has a folder in it: "
            f"download it from {homepage}, or name another table with --config.data.csv."
        )
    return path


def header(path: Path) -> set[str]:
    """Return the names of a table's columns as ``plain`` writes them; none if it is unreadable."""
    try:
        return set(map(plain, pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns))
    except _ERRORS:
        return set()


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read columns of a table as text.

    Args:
        path: csv file, compressed if it ends in ``.gz`` or ``.zip``.
        columns: columns that it must have, compared without case and separators.
        optional: columns that are empty where it lacks them.

    Returns:
        The columns in their order, indexed by the number of the row, from 2 below the header.

    Raises:
        InputError: the table is unreadable or empty, lacks a column, or has too short a row.
    """
    known = {plain(column): column for column in (*columns, *optional)}
    try:
        rows = pd.read_csv(
            path,
            usecols=lambda column: plain(column) in known,
            dtype=str,
            keep_default_na=False,
            index_col=False,
            encoding="utf-8-sig",
        )
    except _ERRORS as error:
        raise InputError(
            f"The table {path} cannot be read as a csv file ({str(error).strip()}): download it "
            "again."
        ) from error
    rows = rows.rename(columns=lambda column: known[plain(column)])
    absent = [column for column in columns if column not in rows]
    if absent:
        raise InputError(
            f"The table {path} has no column {absent[0]!r}: its first line must name "
            f"{', '.join(columns)}."
        )
    if rows.empty:
        raise InputError(f"The table {path} has no rows: download it again.")
    rows.index += 2
    check_fields(path)
    return rows.reindex(columns=[*columns, *optional], fill_value="")


def read_labels(rows: pd.DataFrame, values: dict[str, int], path: Path) -> np.ndarray:
    """Return the labels that the words of a table stand for, ``[n, F]`` int8.

    Args:
        rows: a column for each finding.
        values: label of each word.
        path: path of the table, for the error.

    Raises:
        InputError: another word.
    """
    labels = np.empty(rows.shape, np.int8)
    for column, name in enumerate(rows.columns):
        codes, words = pd.factorize(rows[name])
        wrong = next((word for word in words if word not in values), None)
        if wrong is not None:
            line = rows.index[rows[name] == wrong][0]
            raise InputError(
                f"The table {path}, row {line}, has {wrong!r} in the column {name!r}: it must be "
                f"one of {', '.join(repr(word) for word in values)}."
            )
        labels[:, column] = np.array([values[word] for word in words], np.int8)[codes]
    return labels


def choose_views(
    rows: pd.DataFrame, path: Path, views: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep the frontal images, or all.

    Args:
        rows: rows of the table; the column ``frontal`` tells whether each image is frontal, and
            ``view`` its view.
        path: path of the table, for messages.
        views: one of ``VIEWS``.

    Returns:
        The rows of these images, and a sentence on those that were left out if any was.

    Raises:
        InputError: none is frontal.
    """
    if views == "all" or rows["frontal"].all():
        return rows, ()
    left = rows["view"][~rows["frontal"]].value_counts()
    counted = [f"{n:,} {view or 'unknown'}" for view, n in left.items()]
    shown = ", ".join(counted[:_SHOWN] + ["..."] * (len(counted) > _SHOWN))
    if not rows["frontal"].any():
        raise InputError(
            f"The table {path} has no frontal view among its {len(rows):,} images ({shown}): name "
            "a table with images that are PA or AP, or take these with --config.data.views=all."
        )
    note = (
        f"{left.sum():,} of the {len(rows):,} images of {path} have no frontal view ({shown}) and "
        "are left out: --config.data.views=all takes them, too."
    )
    return rows[rows["frontal"]], (note,)


def sort_by_name(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Sort rows by their column ``image``.

    Raises:
        InputError: two rows have the same image.
    """
    rows = rows.sort_values("image", kind="stable")
    twice = rows["image"].duplicated()
    if twice.any():
        line = rows.index[twice][0]
        raise InputError(
            f"The table {path} lists {rows.at[line, 'image']} a second time in row {line}: remove "
            "one of the two rows."
        )
    return rows


def number_patients(names: pd.Series) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Return patients' numbers, by the order of their names, and the name of each number."""
    numbers, distinct = pd.factorize(names, sort=True)
    return numbers.astype(np.int32), tuple(map(str, distinct))


def find_files(directory: Path, names: Sequence[str], depth: int = 1) -> dict[int, str]:
    """Find the image files of names anywhere below a folder, each with any ending of an image.

    Args:
        directory: folder of the data.
        names: names of images, as paths with slashes.
        depth: number of last parts of a path that tell images apart.

    Returns:
        The path of each image that has a file, by its position: that of its name, else the first.
        Paths are text, since 377,000 path objects take seconds.
    """
    places = (os.path.join(directory, name) for name in names)
    there = {row: place for row, place in enumerate(places) if os.path.isfile(place)}
    rows = {_tail(name, depth): row for row, name in enumerate(names) if row not in there}
    found: dict[int, Path] = {}
    for path in walk(directory) if rows else ():
        row = rows.get(_tail(path.as_posix(), depth))
        if row is not None and path.suffix.lower() in SUFFIXES:
            found[row] = min(found.get(row, path), path)
    return dict(sorted((there | {row: str(path) for row, path in found.items()}).items()))


def _tail(name: str, depth: int) -> str:
    """Return the last parts of a path as they are compared."""
    return "/".join(spelling_key(name).rsplit("/", depth)[-depth:])
