"""Read a prepared data set: resized images and the full table."""

import csv
import dataclasses
import gzip
import hashlib
import json
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from data_pipelines.atomic_files import whole_path
from data_pipelines.errors import InputError
from data_pipelines.images.decode import CONTAINER, Check, decoded_array
from data_pipelines.prepared.shards import Layout, holds, open_shard
from data_pipelines.tables.case_table import SIMULATED_MARKER, CaseTable

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordReader

TFDS_INFO = "dataset_info.json"
IDENTITY = "prepare.json"
TABLE = "table.csv.gz"
# These precede the findings, whose names the user chooses and may repeat one of these.
_COLUMNS = ("image", "patient", "official_part", "view", "sex", "age", "record")
_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, zlib.error, csv.Error)


def is_prepared(directory: Path) -> bool:
    """Whether a folder holds a complete prepared data set."""
    return (Path(directory) / TFDS_INFO).is_file()


def load(directory: Path, source: str) -> CaseTable:
    """Read the full table of a prepared data set.

    Args:
        directory: folder that ``data_pipelines.prepare`` has written.
        source: registry name of the expected source.

    Returns:
        The table that the source's own loader returns, except that unreadable images are absent.

    Raises:
        InputError: it was prepared from another source, or a file of it is missing or damaged.
    """
    directory = Path(directory)
    identity = read_identity(directory)
    if identity["source"] != source:
        raise InputError(
            f"config.data.source is {source!r} but {directory} was prepared from "
            f"{identity['source']!r}: set --config.data.source={identity['source']}, or name "
            "another folder with --config.data.dir."
        )
    findings, frame = _read_table(directory / TABLE)
    layout = Layout(
        directory, source, identity["size"], identity["rows"], identity["rows_per_shard"]
    )
    if len(frame) != layout.n_rows:
        raise InputError(
            f"{directory / TABLE} has {len(frame)} rows but {layout.n_rows} were prepared: prepare "
            "the images again into another folder."
        )
    images = frame["image"].to_numpy(str)
    return CaseTable(
        source=source,
        findings=findings,
        images=images,
        patients=frame["patient"].to_numpy(np.int32),
        labels=frame[list(range(len(findings)))].to_numpy(np.int8),
        official_part=frame["official_part"].to_numpy(str),
        views=frame["view"].to_numpy(str),
        sexes=frame["sex"].to_numpy(str),
        ages=frame["age"].to_numpy(np.int16),
        store=_records(layout, images, frame["record"].to_numpy(np.int64), identity["value_range"]),
        simulated=(directory / SIMULATED_MARKER).is_file(),
        **_from_json(identity["notes"]),
    )


def notes(table: CaseTable) -> dict[str, Any]:
    """Return the notes on a whole table for JSON; ``load`` reads them."""
    return {
        "official_known": table.official_known,
        "patients_known": table.patients_known,
        "patient_names": list(table.patient_names),
        "warnings": list(table.warnings),
    }


def _from_json(notes: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in notes.items()}


def table_digest(table: CaseTable) -> str:
    """Return a SHA-256 of all rows of a table, present or not."""
    rows = _frame(table, np.full(len(table.images), -1)).to_csv(index=False)
    return hashlib.sha256(f"{table.source} {table.simulated}\n{rows}".encode()).hexdigest()


def write_table(path: Path, table: CaseTable, records: Int[np.ndarray, " n"]) -> None:
    """Write the full table with each record's position, -1 for none."""
    rows = _frame(table, records).to_csv(index=False)
    with whole_path(path) as draft:
        # Without a name and a time in its header, equal tables give equal files.
        draft.write_bytes(gzip.compress(rows.encode(), mtime=0))


def _frame(table: CaseTable, records: np.ndarray) -> pd.DataFrame:
    positions = np.where(records < 0, "", records.astype(str))
    columns = (
        table.images,
        table.patients,
        table.official_part,
        table.views,
        table.sexes,
        table.ages,
        positions,
    )
    frame = pd.DataFrame(dict(enumerate((*columns, *table.labels.T))))
    frame.columns = [*_COLUMNS, *table.findings]
    return frame


def read_identity(directory: Path) -> dict[str, Any]:
    """Read what a folder was prepared from: source, size, value range, views, rows, table digest.

    Raises:
        InputError: the folder was not written by ``data_pipelines.prepare``.
    """
    path = directory / IDENTITY
    try:
        return {"value_range": CONTAINER, "views": "frontal"} | json.loads(
            path.read_text(encoding="utf-8")
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory} has no readable {IDENTITY}: name a folder that "
            "`charm-jax prepare` has written, or one with the source's own files."
        ) from error


def _read_table(path: Path) -> tuple[tuple[str, ...], pd.DataFrame]:
    """Read the findings, and the rows with numbered finding columns."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            header = next(csv.reader(file))
        findings = tuple(header[len(_COLUMNS) :])
        names = [*_COLUMNS, *range(len(findings))]
        kinds = dict.fromkeys(names, "int8") | dict.fromkeys(_COLUMNS, "str")
        frame = pd.read_csv(
            path, header=None, skiprows=1, names=names, dtype=kinds, keep_default_na=False
        )
        frame["record"] = frame["record"].where(frame["record"] != "", "-1")
        whole = {"patient": "int32", "age": "int16", "record": "int64"}
        return findings, frame.astype(whole)
    except (*_READ_ERRORS, StopIteration) as error:
        raise InputError(
            f"The table {path} is missing or damaged ({error}): run `charm-jax "
            "prepare` again with this folder as --out."
        ) from error


def _records(
    layout: Layout, images: np.ndarray, records: np.ndarray, value_range: str
) -> "Records":
    present = np.flatnonzero(records >= 0)
    counts = np.bincount(present // layout.rows_per_shard, minlength=layout.n_shards)
    for index, count in enumerate(counts.tolist()):
        if not holds(layout.shard(index), count):
            raise InputError(
                f"The shard {layout.shard(index)} is missing or damaged: run `charm-jax "
                "prepare` again with this folder as --out."
            )
    first = np.concatenate([[0], np.cumsum(counts)])
    return Records(layout, images, records, first, value_range)


class _Readers:
    """Hold the open shards of a process; pickling drops them."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._lock = threading.Lock()
        self._open: dict[int, ArrayRecordReader] = {}

    def __reduce__(self) -> tuple:
        return _Readers, (self._layout,)

    def read(self, shard: int, records: list[int]) -> list[bytes]:
        """Read records by their positions in a shard; thread-safe."""
        with self._lock:
            if shard not in self._open:
                self._open[shard] = open_shard(self._layout.shard(shard))
        return self._open[shard].read(records)


@dataclasses.dataclass(frozen=True)
class Records:
    """Read prepared images: an ``ImageStore`` of one size.

    Attributes:
        layout: layout of the data set.
        names: ``[n]`` image names of the table.
        records: ``[n]`` int64 position of each image's record among all, -1 for none.
        first: ``[shards + 1]`` int64 position of each shard's first record, and their number.
        value_range: range that the images were prepared with; see ``decode.decode``.
    """

    layout: Layout
    names: np.ndarray
    records: np.ndarray
    first: np.ndarray
    value_range: str = CONTAINER
    _readers: _Readers = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_readers", _Readers(self.layout))

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Whether each image has a record."""
        return self.records >= 0

    def read(
        self, case_ids: Int[np.ndarray, " batch"], size: int
    ) -> UInt8[np.ndarray, "batch size size 1"]:
        """Read a batch, shard by shard; see ``ImageStore``."""
        self.check_size(size)
        records = self.records[case_ids]
        if (records < 0).any():
            raise InputError(
                f"The image {self.names[case_ids[records < 0][0]]} is listed but "
                f"{self.layout.directory} has no record of it: fetch the image and prepare the "
                "folder again, or set --config.data.missing=skip."
            )
        # An empty shard has the same first record as the next; 'right' finds the next.
        shards = np.searchsorted(self.first, records, side="right") - 1
        images = np.empty((len(case_ids), size, size, 1), np.uint8)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            self._read_shard(images, places, case_ids, shard)
        return images

    def check_size(self, size: int) -> None:
        """Refuse any size but the prepared one; see ``ImageStore``."""
        prepared = self.layout.size
        if size != prepared:
            raise InputError(
                f"config.data.image_size is {size} but {self.layout.directory} was prepared at "
                f"{prepared}: set --config.data.image_size={prepared}, or prepare the images at "
                f"{size} into another folder."
            )

    def examine(self, case_id: int, size: int) -> tuple[UInt8[np.ndarray, "size size 1"], Check]:
        """Read and resize a record; see ``ImageStore``."""
        try:
            (image,) = self.read(np.array([case_id]), self.layout.size)
        except InputError as error:
            return np.zeros((size, size, 1), np.uint8), Check(str(error))
        # Its 8 bits do not tell the value that was white in the source.
        decoded = dataclasses.replace(
            decoded_array(Image.fromarray(image[..., 0])), stored_top=None
        )
        return decoded.square(size), Check(sliver=decoded.sliver())

    def check_header(self, case_id: int, *, checksums: bool = False) -> Check:
        """Find no fault: a record has no header; see ``ImageStore``."""
        return Check()

    def _read_shard(
        self, images: np.ndarray, places: np.ndarray, case_ids: np.ndarray, shard: int
    ) -> None:
        """Fill the places of a batch that one shard holds."""
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        positions = self.records[case_ids[places]] - self.first[shard]
        try:
            records = self._readers.read(shard, positions.tolist())
            for place, record in zip(places.tolist(), records, strict=True):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                if feature["case_id"].int64_list.value[0] != case_ids[place]:
                    raise ValueError("it holds another image's record")
                pixels = np.frombuffer(feature["image"].bytes_list.value[0], np.uint8)
                images[place] = pixels.reshape(images.shape[1:])
        except (RuntimeError, ValueError, IndexError, DecodeError) as error:
            raise InputError(
                f"The shard {self.layout.shard(shard)} cannot be read ({error}): delete it and run "
                "`charm-jax prepare` again with this folder as --out."
            ) from error
