"""Resizes the images of a source once and stores them as records that are quick to read.

``python -m data_pipelines.prepare nih_chest_xray14 --source DIR --out DIR --size 224`` writes a
TensorFlow Datasets folder of uint8 grey squares in ArrayRecord shards, with the source's full table
beside them; ``config.data.dir`` takes it in place of the source's own folder. TensorFlow is not
needed, neither here nor to read it (``tfds.builder_from_directory(DIR).as_data_source("all")``).

A run that was cut off is continued by the same command. Many machines share the work by
``--part 0/4`` to ``--part 3/4`` and a last call without ``--part``. Exit codes: 0 done; 1 done, but
some inputs were refused (``quarantine.csv``); 2 bad input.
"""

import argparse
import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.prepare.claim import check_claim, claim, identity, remove_leftovers
from data_pipelines.prepare.shard_check import finished_shards
from data_pipelines.prepare.workers import write_shards
from data_pipelines.prepared import dataset
from data_pipelines.prepared.shards import ROWS_PER_SHARD, Layout, Report, remove_stale_drafts
from data_pipelines.prepared.summary import write_summary
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.quarantine import ABSENT, Entry, write_quarantine


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
    max_share: float = 0.001,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> list[Entry]:
    """Writes the shards that are not finished yet and, without ``part``, all that goes with them.

    Args:
        source: a name of ``sources.SOURCES``.
        directory: folder of the source's own files.
        out: folder to write: absent, empty, or what an earlier call with the same source, size and
            table has begun.
        size: side of the images in pixels, at least 1.
        csv: as in ``sources.load``.
        part: (i, n): write the i-th of n shares of the shards, i from 0, and nothing else.
        processes: worker processes, at least 1.
        missing: ``error`` or ``skip``, as in ``quarantine.apply_policy``.
        max_share: share of the images that may be refused, 0 to 1.
        rows_per_shard: rows of the table in a shard.

    Returns:
        ``(image, reason)`` of each image that was refused.

    Raises:
        InputError: wrong arguments, ``out`` holds something else, too many images refused, or
            whatever the source's loader finds wrong.
    """
    directory, out = Path(directory), Path(out)
    _check_arguments(directory, out, size, processes)
    table = sources.load(source, directory, csv)
    for warning in table.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    absent = _absent(table, missing, max_share)
    n_expected = len(table.images) - (len(absent) if missing == "skip" else 0)
    layout = Layout(out, source, size, len(table.images), rows_per_shard)
    asked = identity(layout, table)
    check_claim(layout, asked)
    share, of = part or (0, 1)
    indices = range(share, layout.n_shards, of)
    remove_stale_drafts(layout, indices)
    reports = finished_shards(table, layout, indices)
    todo = [index for index, report in reports.items() if report is None]
    _check_space(layout, table, todo)
    claim(layout, asked)
    if todo:
        # Until its last shard is written again, the data set is not complete.
        (out / dataset.TFDS_INFO).unlink(missing_ok=True)
    refused = [] if missing == "skip" else absent
    with contextlib.closing(write_shards(table, layout, todo, processes)) as written:
        for index, report in written:
            reports[index] = report
            _check_refused(out, refused + _unreadable(reports.values()), n_expected, max_share)
    refused = sorted(refused + _unreadable(reports.values()))
    _check_refused(out, refused, n_expected, max_share)
    if part is None:
        remove_leftovers(layout)
        write_quarantine(out / "quarantine.csv", refused)
        write_summary(layout, table, [reports[index] for index in indices], refused)
    return refused


def _check_arguments(directory: Path, out: Path, size: int, processes: int) -> None:
    if size < 1 or processes < 1:
        raise InputError(f"--size is {size} and --processes {processes}: both must be at least 1.")
    if dataset.is_prepared(directory):
        raise InputError(
            f"{directory} (--source) is prepared: name the folder of the source's own files."
        )
    if directory.resolve() == out.resolve():
        raise InputError(f"--source and --out are both {out}: name another folder to write to.")


def _absent(table: CaseTable, missing: str, max_share: float) -> list[Entry]:
    """The images without a file, if so many may be absent."""
    absent = table.images[~table.present].tolist()
    n = len(table.images)
    if len(absent) == n:
        raise InputError(
            f"Not one of the {n} images of the table is in the data folder: name the folder that "
            "holds them with --source."
        )
    if missing == "error" and len(absent) > max_share * n:
        raise InputError(
            f"{len(absent)} of {n} images are absent ({', '.join(absent[:3])}, ...), more than the "
            f"{max_share:.1%} allowed: fetch them, or give --missing=skip to prepare the images "
            "that are there."
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


def _check_refused(out: Path, refused: list[Entry], expected: int, max_share: float) -> None:
    if len(refused) <= max_share * expected:
        return
    write_quarantine(out / "quarantine.csv", refused)
    shown = "; ".join(f"{name}: {reason}" for name, reason in refused[:3])
    raise InputError(
        f"{len(refused)} of {expected} images are absent or unreadable ({shown}), more than the "
        f"{max_share:.1%} allowed: see {out / 'quarantine.csv'}, fetch them again, or remove them "
        "and give --missing=skip, then start the same command again."
    )


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"--part is {text!r}: give i/n with i from 0 to n-1, such as 0/4.")
    return int(match[1]), int(match[2])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"one of {', '.join(sources.SOURCES)}")
    parser.add_argument("--source", type=Path, required=True, help="folder of the images and table")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", type=int, default=224, help="side in pixels (224)")
    parser.add_argument("--csv", default="", help="table in place of the source's own")
    parser.add_argument("--part", help="i/n: only the i-th of n shares, from 0")
    parser.add_argument("--processes", type=int, default=_cores(), help="one a core")
    parser.add_argument(
        "--missing",
        choices=("error", "skip"),
        default="error",
        help="absent images: error stops if they are more than 0.1%%, skip leaves them out (error)",
    )
    options = parser.parse_args(arguments)
    try:
        refused = prepare(
            options.name,
            options.source,
            options.out,
            size=options.size,
            csv=options.csv,
            part=_part(options.part) if options.part else None,
            processes=options.processes,
            missing=options.missing,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {error.filename or options.out}: {error.strerror}: put that right and start "
            "the same command again, it continues.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command continues.", file=sys.stderr)
        return 130
    done = f"part {options.part}" if options.part else str(options.out)
    print(f"{done}: prepared, {len(refused)} images refused")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
