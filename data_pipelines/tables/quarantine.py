"""Find missing and damaged images before training, and list them."""

import concurrent.futures
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.atomic_files import whole_file
from data_pipelines.errors import InputError
from data_pipelines.progress import progress
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.splits import Split, keep_rows

ABSENT = "absent"
# Up to this many files are read in full; the 42 GB of the full set would delay every start by
# minutes. Damage that a header does not show stops the run later, with the file's name.
FULL_CHECK_ROWS = 20_000
_THREADS = 8

Entry = tuple[str, str]


def verify_files(table: CaseTable, rows: np.ndarray) -> list[Entry]:
    """Find images that are absent, empty or damaged.

    Up to 20,000 images are read in full; of more, only size and header are checked.

    Args:
        table: the source's table.
        rows: ``[n]`` case ids to check.

    Returns:
        ``(image, reason)`` of each bad image, in the order of ``rows``; the reason is ``absent``,
        ``empty`` or the decoder's.
    """
    present = rows[table.present[rows]].tolist()
    whole = len(present) <= FULL_CHECK_ROWS
    reasons = dict.fromkeys(rows.tolist(), ABSENT)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        faults = progress(
            pool.map(lambda case_id: table.store.fault(case_id, whole=whole), present),
            total=len(present),
            desc="checking image files",
            unit="files",
        )
        reasons |= zip(present, faults, strict=True)
    return [(str(table.images[row]), reason) for row, reason in reasons.items() if reason]


def apply_policy(
    table: CaseTable, split: Split, missing: str, max_share: float = 0.001
) -> tuple[Split, list[Entry]]:
    """Drop bad images from the split, within the allowed share.

    Args:
        table: the source's table.
        split: split of the full table.
        missing: ``error``: absent and damaged images together may be at most ``max_share`` of the
            used ones. ``skip``: any number may be absent; damaged ones may be at most ``max_share``
            of those present.
        max_share: 0 to 1.

    Returns:
        The split without the bad images, its leakage counted again, and ``(image, reason)`` of
        each bad image.

    Raises:
        InputError: too many bad images, none left, or an unknown ``missing``.
    """
    if missing not in ("error", "skip"):
        raise InputError(f"config.data.missing is {missing!r}: set it to 'error' or 'skip'.")
    rows = split.used_rows
    entries = verify_files(table, rows)
    damaged = [entry for entry in entries if entry[1] != ABSENT]
    n_absent = len(entries) - len(damaged)
    if len(entries) == len(rows):
        raise InputError(
            f"None of the {len(rows)} images of the table {_is_usable(entries)}: set "
            "--config.data.dir to the folder that holds the image files."
        )
    if missing == "error" and len(entries) > max_share * len(rows):
        raise InputError(
            f"{len(entries)} of {len(rows)} images are absent or unreadable ({_first(entries)}), "
            f"more than the {max_share:.1%} allowed: fetch them, or set --config.data.missing=skip "
            "to use the images that are there."
        )
    if missing == "skip" and len(damaged) > max_share * (len(rows) - n_absent):
        raise InputError(
            f"{len(damaged)} of {len(rows) - n_absent} image files are unreadable "
            f"({_first(damaged)}), more than the {max_share:.1%} allowed: fetch them again, or "
            "remove the files so that --config.data.missing=skip leaves them out."
        )
    bad = np.isin(table.images, [name for name, _ in entries])
    return keep_rows(table, split, ~bad), entries


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
