"""Find the finished, undamaged shards, which need not be written again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.prepare.shard_writer import (
    Report,
    present_rows,
    record_content,
    rows_digest,
)
from data_pipelines.prepared.shards import Layout, holds, open_shard
from data_pipelines.progress import progress
from data_pipelines.tables.case_table import CaseTable

_RECORDS_AT_ONCE = 64
_TEXTS = ("name", "view", "sex")
# In the order in which the digest takes them.
_NAMES = ("name", "patient", "labels", "view", "sex", "age", "case_id")


def finished_shards(
    table: CaseTable, layout: Layout, indices: Sequence[int]
) -> dict[int, Report | None]:
    """Return the report on each shard, None if it must be (re)written.

    A shard is rewritten if it was never finished, is damaged, or if images have since been added,
    removed, or become readable. All records are read, with a progress bar.
    """
    reports = {index: _plausible(table, layout, index) for index in indices}
    total = sum(report["records"] for report in reports.values() if report)
    with progress(total=total, desc="checking shards", unit="images") as bar:
        for index, report in reports.items():
            if report and _digest(layout.shard(index), bar.update) != report["sha256"]:
                reports[index] = None
    return reports


def _plausible(table: CaseTable, layout: Layout, index: int) -> Report | None:
    """Return the report, None if a check without the records fails."""
    report = _read_report(layout.report(index))
    if report is None or not holds(layout.shard(index), report["records"]):
        return None
    if report["present"] != rows_digest(present_rows(layout, table, index)):
        return None
    for name, _ in report["refused"]:
        row = int(np.searchsorted(table.images, name))
        if not table.store.examine(row, 1)[1].fault:
            return None
    return report


def _read_report(path: Path) -> Report | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # never finished, or damaged
        return None


def _digest(shard: Path, step: Callable[[int], object]) -> str:
    """Compute the ``sha256`` of a shard; empty if a record is unreadable."""
    from google.protobuf.message import DecodeError

    digest = hashlib.sha256()
    reader = open_shard(shard)
    try:
        n = reader.num_records()
        for start in range(0, n, _RECORDS_AT_ONCE):
            records = reader.read(list(range(start, min(start + _RECORDS_AT_ONCE, n))))
            for record in records:
                digest.update(_content(record))
            step(len(records))
    except (RuntimeError, ValueError, IndexError, DecodeError):
        return ""
    finally:
        reader.close()
    return digest.hexdigest()


def _content(record: bytes) -> bytes:
    """Recover the digested bytes from a record."""
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(record).features.feature
    values = {}
    for name in _NAMES:
        if name in _TEXTS:
            values[name] = feature[name].bytes_list.value[0].decode()
        else:
            numbers = list(feature[name].int64_list.value)
            values[name] = numbers if name == "labels" else numbers[0]
    return record_content(values, feature["image"].bytes_list.value[0])
