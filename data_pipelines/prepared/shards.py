"""Describe and open the shards of a prepared data set.

A shard holds the present images of a fixed range of rows of the source's full table. Its records
therefore do not depend on which process writes it, or when.
"""

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from data_pipelines.errors import InputError
from data_pipelines.tables.case_table import CaseTable

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.core.features import FeaturesDict

# 103 MB of images at 224 pixels: large enough for a network disk, small enough to redo.
ROWS_PER_SHARD = 2048
# TFDS reserves the name 'all' for the union of its splits.
SPLIT = "full"
# Reading ahead is useless: the next record of a batch is elsewhere.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER = 2**15


@dataclasses.dataclass(frozen=True)
class Layout:
    """Locate the shards of a prepared data set.

    Attributes:
        directory: folder of the data set.
        source: registry name of the source.
        size: side S of the images in pixels.
        n_rows: rows of the source's full table.
        rows_per_shard: rows of that table in a shard, with and without an image.
    """

    directory: Path
    source: str
    size: int
    n_rows: int
    rows_per_shard: int = ROWS_PER_SHARD

    @property
    def n_shards(self) -> int:
        """Number of shards, including those without an image."""
        return -(-self.n_rows // self.rows_per_shard)

    @property
    def reports(self) -> Path:
        """Folder of the reports on finished shards, and of drafts."""
        return self.directory / "progress"

    def rows(self, index: int) -> Int[np.ndarray, " n"]:
        """Return the rows of the table that a shard covers."""
        start = index * self.rows_per_shard
        return np.arange(start, min(start + self.rows_per_shard, self.n_rows))

    def present_in(self, indices: Sequence[int], table: CaseTable) -> int:
        """Count the present images of some shards."""
        present = table.present
        return sum(int(present[self.rows(index)].sum()) for index in indices)

    def shard(self, index: int) -> Path:
        """Return the path of a shard, named for TFDS."""
        name = f"{self.source}-{SPLIT}.array_record-{index:05d}-of-{self.n_shards:05d}"
        return self.directory / name

    def report(self, index: int) -> Path:
        """Return the path of the report on a finished shard."""
        return self.reports / f"{index:05d}.json"


def features(size: int, n_findings: int) -> "FeaturesDict":
    """Return the TFDS description of a record.

    Args:
        size: side S of the images in pixels.
        n_findings: F.
    """
    from tensorflow_datasets import features as kinds

    return kinds.FeaturesDict(
        {
            "image": kinds.Tensor(
                shape=(size, size, 1), dtype=np.uint8, encoding=kinds.Encoding.BYTES
            ),
            "name": kinds.Text(),
            "patient": kinds.Scalar(np.int32),
            "labels": kinds.Tensor(shape=(n_findings,), dtype=np.int8),
            "view": kinds.Text(),
            "sex": kinds.Text(),
            "age": kinds.Scalar(np.int16),
            "case_id": kinds.Scalar(np.int32),
        }
    )


def open_shard(shard: Path) -> "ArrayRecordReader":
    """Open a shard for random access; ``ok()`` detects damage."""
    reader = import_array_record().ArrayRecordReader
    return reader(str(shard), _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER)


def import_array_record() -> ModuleType:
    """Return the module that reads and writes shards.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError:
        raise InputError(
            "Prepared folders need the package array_record, which Windows does not have: read the "
            "folder of the source's own files, or work on Linux."
        ) from None


def holds(shard: Path, records: int) -> bool:
    """Whether a shard is whole and has the given number of records."""
    reader = open_shard(shard)
    # A reader that is not ok cannot be closed.
    if not reader.ok():
        return False
    try:
        return reader.num_records() == records
    finally:
        reader.close()
