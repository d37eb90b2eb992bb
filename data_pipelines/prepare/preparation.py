"""Resize the images of a source once and store them as records.

The output is a TensorFlow Datasets folder of uint8 grey squares in ArrayRecord shards, with the
source's full table beside them. Neither writing nor reading it needs TensorFlow
(``tfds.builder_from_directory(DIR).as_data_source("all")``).
"""

import contextlib
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.images.decode import CONTAINER, Sliver
from data_pipelines.prepare.claim import (
    QUARANTINE,
    at_work,
    check_claim,
    claim,
    identity,
    is_alone,
    remove_leftovers,
    withdraw,
)
from data_pipelines.prepare.shard_check import finished_shards
from data_pipelines.prepare.shard_writer import Report, remove_stale_drafts
from data_pipelines.prepare.summary import write_summary
from data_pipelines.prepare.workers import write_shards
from data_pipelines.prepared import dataset
from data_pipelines.prepared.shards import ROWS_PER_SHARD, Layout, import_array_record
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.oddities import warnings_of
from data_pipelines.tables.quarantine import ABSENT, MAX_UNREADABLE, Entry, write_quarantine


def prepare(
    source: str,
    directory: Path,
    out: Path,
    *,
    size: int,
    csv: str = "",
    part: tuple[int, int] | None = None,
    processes: int = 1,
    missing: str = "error",
    max_unreadable: float = MAX_UNREADABLE,
    value_range: str = CONTAINER,
    views: str = "frontal",
    rows_per_shard: int = ROWS_PER_SHARD,
) -> list[Entry]:
    """Write the unfinished shards and, without ``part``, complete the data set.

    Args:
        source: a name of ``sources.SOURCES``.
        directory: folder of the source's own files.
        out: folder to write: absent, empty, or begun by an earlier call with the same source, size
            and table.
        size: side of the images in pixels, at least 1.
        csv: see ``sources.load``.
        part: (i, n): write the i-th of n shares of the shards, i from 0, and nothing else.
        processes: worker processes, at least 1.
        missing: ``error`` or ``skip``; see ``quarantine.apply_policy``.
        max_unreadable: share of the images that may be refused, 0 to 1.
        value_range: see ``decode.decode``.
        views: see ``sources.load``.
        rows_per_shard: rows of the table in a shard.

    Returns:
        ``(image, reason)`` of each image that was refused.

    Raises:
        InputError: wrong arguments, other content in ``out``, too many images refused, or an error
            that the source's loader finds.
    """
    directory, out = Path(directory), Path(out)
    import_array_record()
    _check_arguments(directory, out, size, processes)
    table = sources.load(source, directory, csv, value_range, uncertain="keep", views=views)
    if table.sets:
        raise InputError(
            f"{directory} merges several sets: prepare each, and name the prepared folders in "
            "sets.csv."
        )
    for warning in table.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    absent = _absent(table, missing, max_unreadable)
    n_expected = len(table.images) - (len(absent) if missing == "skip" else 0)
    layout = Layout(out, source, size, len(table.images), rows_per_shard)
    asked = identity(layout, table, views)
    check_claim(layout, asked)
    share, of = part or (0, 1)
    indices = range(share, layout.n_shards, of)
    remove_stale_drafts(layout, indices)
    reports = finished_shards(table, layout, indices)
    todo = [index for index, report in reports.items() if report is None]
    _check_space(layout, table, todo)
    claim(layout, asked)
    refused = [] if missing == "skip" else absent
    with at_work(layout) as claimed:
        if todo:
            # The data set is incomplete until its last shard is written again.
            (out / dataset.TFDS_INFO).unlink(missing_ok=True)
        try:
            with contextlib.closing(write_shards(table, layout, todo, processes)) as written:
                for index, report in written:
                    reports[index] = report
                    found = refused + _unreadable(reports.values())
                    _check_refused(out, found, n_expected, max_unreadable)
            refused = sorted(refused + _unreadable(reports.values()))
            _check_refused(out, refused, n_expected, max_unreadable)
        except InputError as error:
            if is_alone(claimed):
                withdraw(layout, todo if isinstance(error, _RefusedError) else ())
            raise
        if part is None:
            if is_alone(claimed):
                remove_leftovers(layout)
            write_quarantine(out / QUARANTINE, refused)
            write_summary(layout, table, [reports[index] for index in indices], refused)
    done = [report for report in reports.values() if report]
    slivers = {name: Sliver(*pair) for r in done for name, pair in r.get("slivers", {}).items()}
    remarks = {name: texts for r in done for name, texts in r.get("remarks", {}).items()}
    for warning in warnings_of(slivers, sum(report["records"] for report in done), remarks):
        print(f"warning: {warning}", file=sys.stderr)
    return refused


class _RefusedError(InputError):
    """Report too many refused images: no shard of the call is kept."""


def _check_arguments(directory: Path, out: Path, size: int, processes: int) -> None:
    if size < 1 or processes < 1:
        raise InputError(f"--size is {size} and --processes {processes}: both must be at least 1.")
    if dataset.is_prepared(directory):
        raise InputError(
            f"{directory} (--source) is prepared: name the folder of the source's own files."
        )
    if directory.resolve() == out.resolve():
        raise InputError(f"--source and --out are both {out}: name another folder to write to.")


def _absent(table: CaseTable, missing: str, max_unreadable: float) -> list[Entry]:
    """List the images without a file; refuse too many."""
    absent = table.images[~table.present].tolist()
    n = len(table.images)
    if len(absent) == n:
        raise InputError(
            f"None of the {n} images of the table is in the data folder: name the folder that "
            "holds them with --source."
        )
    if missing == "error" and len(absent) > max_unreadable * n:
        raise InputError(
            f"{len(absent)} of {n} images are absent ({', '.join(absent[:3])}, ...), more than the "
            f"{max_unreadable:.1%} allowed: fetch them, or give --missing=skip to prepare the "
            "images that are there."
        )
    return [(name, ABSENT) for name in absent]


def _check_space(layout: Layout, table: CaseTable, todo: list[int]) -> None:
    images = layout.present_in(todo, table)
    # A record is the pixels, about 300 bytes, and the padding of Riegeli's blocks.
    needed = int(1.02 * images * (layout.size**2 + 300)) + len(todo) * 2**17
    out = layout.directory
    free = shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free
    if needed > free:
        raise InputError(
            f"{out} (--out) has {free / 1e9:.1f} GB free and {images} images at "
            f"{layout.size} pixels need {needed / 1e9:.1f} GB: free some, or name another disk."
        )


def _unreadable(reports: Iterable[Report | None]) -> list[Entry]:
    return [(name, reason) for report in reports if report for name, reason in report["refused"]]


def _check_refused(out: Path, refused: list[Entry], expected: int, max_unreadable: float) -> None:
    if len(refused) <= max_unreadable * expected and len(refused) < expected:
        return
    write_quarantine(out / QUARANTINE, refused)
    shown = "; ".join(f"{name}: {reason}" for name, reason in refused[:3])
    if len(refused) == expected:
        raise _RefusedError(
            f"None of the {expected} images can be read ({shown}): see {out / QUARANTINE}, and "
            "name the folder that holds them with --source."
        )
    raise _RefusedError(
        f"{len(refused)} of {expected} images are absent or unreadable ({shown}), more than the "
        f"{max_unreadable:.1%} allowed: see {out / QUARANTINE}, fetch them again, or allow a "
        "larger share with --max-unreadable, then start the same command again."
    )
