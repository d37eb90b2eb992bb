"""Find missing and damaged images before training, and list them."""

import concurrent.futures
import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError
from data_pipelines.images.decode import Check, Sliver
from data_pipelines.progress import progress
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.oddities import warnings_of
from data_pipelines.tables.splits import Split, keep_rows

ABSENT = "absent"
# Up to this many files are read; the 42 GB of the full set would delay every start by minutes.
# Damage that is not found here stops the run later, with the file's name.
FULL_CHECK_ROWS = 20_000
MAX_UNREADABLE = 0.001  # share of the images
DECODED_ROWS = 500  # decoding takes 12 ms for a PNG of 1024 pixels, its checksums 0.1 ms
_THREADS = 8

Entry = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class FileChecks:
    """Hold what was found out about the images of a table.

    Attributes:
        bad: ``(image, reason)`` of each absent or damaged image; the reason is ``absent``,
            ``empty`` or the decoder's.
        slivers: images that use little of the range of their format, by name.
        measured: number of images whose range was measured.
        remarks: remarks of images that have any, by name.
    """

    bad: list[Entry]
    slivers: Mapping[str, Sliver]
    measured: int
    remarks: Mapping[str, tuple[str, ...]]

    @property
    def warnings(self) -> list[str]:
        """Return a sentence on each kind of oddity among the readable images."""
        return warnings_of(self.slivers, self.measured, self.remarks)


def verify_files(table: CaseTable, rows: np.ndarray, decode: int = DECODED_ROWS) -> FileChecks:
    """Find images that are absent, empty, damaged or odd.

    Some are decoded, and the range of their values is measured. Of the others, size and header are
    checked, and of up to 20,000 files the checksums of PNG.

    Args:
        table: the source's table.
        rows: ``[n]`` case ids to check; the results have their order.
        decode: number of images to decode, chosen at random.
    """
    present = rows[table.present[rows]]
    checksums = len(present) <= FULL_CHECK_ROWS
    generator = np.random.Generator(np.random.PCG64(0))
    decoded = set(generator.permutation(present)[:decode].tolist())
    checks = dict.fromkeys(rows.tolist(), Check(ABSENT))

    def check(row: int) -> Check:
        if row in decoded:
            return table.store.examine(row, 1)[1]
        return table.store.check_header(row, checksums=checksums)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = progress(
            pool.map(check, present.tolist()),
            total=len(present),
            desc="checking image files",
            unit="files",
        )
        checks |= zip(present.tolist(), found, strict=True)
    named = {str(table.images[row]): check for row, check in checks.items()}
    usable = {name: check for name, check in named.items() if not check.fault}
    return FileChecks(
        bad=[(name, check.fault) for name, check in named.items() if check.fault],
        slivers={name: check.sliver for name, check in usable.items() if check.sliver},
        measured=sum(not checks[row].fault for row in decoded),
        remarks={name: check.remarks for name, check in usable.items() if check.remarks},
    )


def apply_policy(
    table: CaseTable, split: Split, missing: str, max_unreadable: float = MAX_UNREADABLE
) -> tuple[Split, FileChecks]:
    """Drop bad images from the split, within the allowed share.

    Args:
        table: the source's table.
        split: split of the full table.
        missing: ``error``: absent and damaged images together may be at most ``max_unreadable`` of
            the used ones. ``skip``: any number may be absent; damaged ones may be at most
            ``max_unreadable`` of those present.
        max_unreadable: 0 to 1.

    Returns:
        The split without the bad images, its leakage counted again, and the checks.

    Raises:
        InputError: too many bad images, none left, or an unknown ``missing``.
    """
    if missing not in ("error", "skip"):
        raise InputError(f"config.data.missing is {missing!r}: set it to 'error' or 'skip'.")
    rows = split.used_rows
    checks = verify_files(table, rows)
    damaged = [entry for entry in checks.bad if entry[1] != ABSENT]
    n_absent = len(checks.bad) - len(damaged)
    if len(checks.bad) == len(rows):
        raise InputError(
            f"None of the {len(rows)} images of the table {_is_usable(checks.bad)}: set "
            "--config.data.dir to the folder that holds the image files."
        )
    if missing == "error" and len(checks.bad) > max_unreadable * len(rows):
        raise InputError(
            f"{len(checks.bad)} of {len(rows)} images are absent or unreadable "
            f"({_first(checks.bad)}), more than the {max_unreadable:.1%} allowed: fetch them, or "
            "set --config.data.missing=skip to use the images that are there."
        )
    if missing == "skip" and len(damaged) > max_unreadable * (len(rows) - n_absent):
        raise InputError(
            f"{len(damaged)} of {len(rows) - n_absent} image files are unreadable "
            f"({_first(damaged)}), more than the {max_unreadable:.1%} allowed: fetch them again, "
            "or allow a larger share with --config.data.max_unreadable."
        )
    bad = np.isin(table.images, [name for name, _ in checks.bad])
    return keep_rows(table, split, ~bad), checks


def write_quarantine(path: Path, entries: Sequence[Entry]) -> None:
    """Write ``image,reason`` lines; the file appears whole or not at all."""
    with whole_file(path) as file:
        csv.writer(file).writerows([("image", "reason"), *entries])


def _is_usable(entries: Sequence[Entry]) -> str:
    absent = all(reason == ABSENT for _, reason in entries)
    return "is in the data folder" if absent else f"can be read ({_first(entries)})"


def _first(entries: Sequence[Entry], n: int = 3) -> str:
    shown = ", ".join(f"{name}: {reason}" for name, reason in entries[:n])
    return shown + (", ..." if len(entries) > n else "")
