"""Merge several data sets into one: the union of their findings, unknown where a set has no label.

A folder with a table ``sets.csv`` names them::

    name,source,dir
    nih,nih_chest_xray14,/data/nih
    ours,csv_folder,ward
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, UInt8

from data_pipelines.errors import InputError, did_you_mean, listed
from data_pipelines.images.decode import CONTAINER, Check
from data_pipelines.images.store import ImageStore
from data_pipelines.prepared.dataset import Records
from data_pipelines.sources.card import Card
from data_pipelines.sources.published import OF_NIH, read_rows
from data_pipelines.tables.boxes import Boxes, concatenated
from data_pipelines.tables.case_table import CaseTable, rows_of
from data_pipelines.tables.findings import canonical, columns_of

NAME = "merged"
TABLES = ("sets.csv",)
COLUMNS = ("source", "dir")
_ALL = ("name", *COLUMNS)
CARD = Card(
    description="Several data sets, merged by the names of their findings.",
    license="The terms of each set hold for its images.",
)


def load(directory: Path, csv: str = "", views: str = "frontal") -> CaseTable:
    """Read the table of sets and load each.

    Args:
        directory: folder with ``sets.csv``.
        csv: table to read in its place.
        views: see ``sources.load``.

    Returns:
        See ``merge``. Names are those in the column ``name``, by default those of the sources.

    Raises:
        InputError: the table or a set is missing or wrong, or two sets share their images.
    """
    from data_pipelines import sources  # which registers this file

    path, rows = _read_sets(directory, csv)
    _check(rows, path, [name for name in sources.SOURCES if name != NAME])
    tables = {}
    for row in rows.itertuples():
        try:
            tables[row.name] = sources.load(
                row.source, path.parent / row.dir, uncertain="keep", views=views
            )
        except InputError as error:
            raise InputError(f"The set {row.name} of {path}: {error}") from error
    return merge(tables)


def read_boxes(directory: Path, csv: str, table: CaseTable) -> Boxes:
    """Read the boxes of the sets whose sources have some.

    Args:
        directory: see ``load``.
        csv: see ``load``.
        table: what ``load`` returned.

    Raises:
        InputError: no source has boxes, or those of a set are missing or wrong.
    """
    from data_pipelines import sources

    path, rows = _read_sets(directory, csv)
    found = []
    for row in rows.itertuples():
        if sources.SOURCES[row.source].boxes is None:
            continue
        try:
            boxes = sources.read_boxes(path.parent / row.dir, "", table.sets[row.name])
        except InputError as error:
            raise InputError(f"The set {row.name} of {path}: {error}") from error
        place = rows_of(table, row.name)[boxes.rows]
        found.append(dataclasses.replace(boxes, rows=place))
    if not found:
        raise InputError(
            f"No set of {path} has boxes around findings: name one with boxes in "
            "--config.data.source, or leave out --boxes."
        )
    return concatenated(found)


def _read_sets(directory: Path, csv: str) -> tuple[Path, pd.DataFrame]:
    """Return the path of the table of sets, and its rows with a name each."""
    path = Path(csv) if csv else Path(directory) / TABLES[0]
    if not path.is_file():
        raise InputError(
            f"There is no {path}: write a table of the sets, with the columns {', '.join(_ALL)}."
        )
    rows = read_rows(path, COLUMNS, ("name",))
    rows = rows.apply(lambda column: column.str.strip())
    rows["name"] = rows["name"].where(rows["name"] != "", rows["source"])
    return path, rows


def _check(rows: pd.DataFrame, path: Path, known: Sequence[str]) -> None:
    """Check the rows of ``sets.csv`` before anything is loaded."""
    names = rows["name"]
    for line, row in rows.iterrows():
        where = f"The table {path}, row {line},"
        if row["source"] not in known:
            raise InputError(
                f"{where} has the source {row['source']!r}: {did_you_mean(row['source'], known)}"
            )
        if not row["dir"]:
            raise InputError(f"{where} has an empty dir: name the folder of the set.")
        if "/" in row["name"]:
            raise InputError(f"{where} has the name {row['name']!r}: write it without '/'.")
    if names.duplicated().any():
        line = rows.index[names.duplicated()][0]
        raise InputError(
            f"The table {path}, row {line}, has the name {names[line]!r} again: fill the column "
            "name, with another one for each set."
        )
    same = [name for name, source in zip(names, rows["source"], strict=True) if source in OF_NIH]
    if len(same) > 1:
        raise InputError(
            f"The sets {listed(same)} of {path} have images of ChestX-ray14 under different names, "
            "so that splits would share patients: keep one of them."
        )


def merge(tables: Mapping[str, CaseTable]) -> CaseTable:
    """Merge tables.

    Args:
        tables: table of each set, by a name without ``/``.

    Returns:
        An image of the set ``nih`` is named ``nih/NAME``, and so are patients, so that equal names
        of two sets stay apart. A finding has the vocabulary's name; its label is unknown in a set
        that does not have it. Each set is split as if it were alone.

    Raises:
        InputError: simulated images would be mixed with others.
    """
    if len({table.simulated for table in tables.values()}) > 1:
        simulated = listed(name for name, table in tables.items() if table.simulated)
        raise InputError(f"The images of {simulated} are SIMULATED and others are not: leave one.")
    findings = _union(tables.values())
    columns = {name: columns_of(findings, table.findings) for name, table in tables.items()}
    labels = [
        np.where(columns[name] >= 0, table.labels[:, columns[name]], -1).astype(np.int8)
        for name, table in tables.items()
    ]
    patients, patient_names = [], []
    for name, table in tables.items():
        numbers, own = np.unique(table.patients, return_inverse=True)
        patients.append(own.reshape(-1) + len(patient_names))
        patient_names += [f"{name}/{table.patient_name(number)}" for number in numbers]
    sizes = [len(table.images) for table in tables.values()]
    images = np.array([f"{name}/{i}" for name, table in tables.items() for i in table.images])
    order = np.argsort(images, kind="stable")

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(table, name) for table in tables.values()])[order]

    merged = CaseTable(
        source=NAME,
        findings=findings,
        images=images[order],
        patients=np.concatenate(patients).astype(np.int32)[order],
        labels=np.concatenate(labels)[order],
        official_part=joined("official_part"),
        views=joined("views"),
        sexes=joined("sexes"),
        ages=joined("ages"),
        store=Stores(
            tuple(table.store for table in tables.values()),
            np.repeat(np.arange(len(sizes)), sizes)[order],
            np.concatenate([np.arange(size) for size in sizes])[order],
        ),
        simulated=all(table.simulated for table in tables.values()),
        official_known=any(table.official_known for table in tables.values()),
        patients_known=all(table.patients_known for table in tables.values()),
        patient_names=tuple(patient_names),
        sets=dict(tables),
    )
    own = [f"{name}: {text}" for name, table in tables.items() for text in table.warnings]
    return dataclasses.replace(merged, warnings=(*own, *shortcuts(merged)))


def _union(tables: Iterable[CaseTable]) -> tuple[str, ...]:
    """Return the findings of all tables by the vocabulary's names, in the order of the tables."""
    union: list[str] = []
    for name in (name for table in tables for name in table.findings):
        if columns_of([name], union)[0] < 0:
            union.append(canonical(name))
    return tuple(union)


def shortcuts(table: CaseTable) -> list[str]:
    """Return a warning of findings that are positive in one set and only absent in others.

    What tells the sets apart, such as a marker or the scanner, then tells the finding, too.
    """
    alone: dict[str, list[str]] = {}
    for column, finding in enumerate(table.findings):
        labels = {name: table.labels[rows_of(table, name), column] for name in table.sets}
        positive = [name for name, known in labels.items() if (known == 1).any()]
        negative = [name for name, known in labels.items() if (known == 0).any()]
        if len(positive) == 1 and set(negative) - set(positive):
            alone.setdefault(positive[0], []).append(finding)
    return [
        f"Only {name} has positive images of {listed(findings)}, which other sets label as absent: "
        "a network may learn what tells the sets apart."
        for name, findings in alone.items()
    ]


@dataclasses.dataclass(frozen=True)
class Stores:
    """Read images of several stores: an ``ImageStore``.

    Attributes:
        stores: that of each set.
        sets: ``[n]`` number of the set of each image.
        rows: ``[n]`` its row in that set.
        value_range: see ``decode.decode``; a prepared set must have been prepared with it.
    """

    stores: tuple[ImageStore, ...]
    sets: np.ndarray
    rows: np.ndarray
    value_range: str = CONTAINER

    @cached_property
    def _ranged(self) -> tuple[ImageStore, ...]:
        for store in self.stores:
            if isinstance(store, Records) and store.value_range != self.value_range:
                raise InputError(
                    f"config.data.value_range is {self.value_range!r} but a merged set was "
                    f"prepared with {store.value_range!r}: prepare it again, or name its own files."
                )
        return tuple(
            dataclasses.replace(store, value_range=self.value_range) for store in self.stores
        )

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Whether each image is in its store."""
        present = np.empty(len(self.rows), bool)
        for number, store in enumerate(self.stores):
            mine = self.sets == number
            present[mine] = store.present[self.rows[mine]]
        return present

    def read(
        self, case_ids: Int[np.ndarray, " batch"], size: int
    ) -> UInt8[np.ndarray, "batch size size 1"]:
        """Read each set's share of a batch; see ``ImageStore``."""
        images = np.empty((len(case_ids), size, size, 1), np.uint8)
        sets, rows = self.sets[case_ids], self.rows[case_ids]
        for number in np.unique(sets):
            images[sets == number] = self._ranged[number].read(rows[sets == number], size)
        return images

    def check_size(self, size: int) -> None:
        """Ask each store; see ``ImageStore``."""
        for store in self._ranged:
            store.check_size(size)

    def examine(self, case_id: int, size: int) -> tuple[UInt8[np.ndarray, "size size 1"], Check]:
        """Ask the image's store; see ``ImageStore``."""
        return self._ranged[self.sets[case_id]].examine(int(self.rows[case_id]), size)

    def check_header(self, case_id: int, *, checksums: bool = False) -> Check:
        """Ask the image's store; see ``ImageStore``."""
        store = self._ranged[self.sets[case_id]]
        return store.check_header(int(self.rows[case_id]), checksums=checksums)
