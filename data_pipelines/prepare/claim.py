"""Claim a folder for one preparation, and remove what killed or refused calls left."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_pipelines.atomic_files import draft_of, is_draft
from data_pipelines.errors import InputError
from data_pipelines.prepared import dataset
from data_pipelines.prepared.shards import Layout
from data_pipelines.tables.case_table import CaseTable

_HIDDEN = ".tfds-"
QUARANTINE = "quarantine.csv"


def identity(layout: Layout, table: CaseTable, views: str = "frontal") -> dict[str, Any]:
    """Identify a preparation; calls with the same identity share the work."""
    return {
        "format": 1,
        "source": layout.source,
        "size": layout.size,
        "rows_per_shard": layout.rows_per_shard,
        "rows": layout.n_rows,
        "table_sha256": dataset.table_digest(table),
        "notes": dataset.notes(table),
        "value_range": table.store.value_range,
        "views": views,
    }


def check_claim(layout: Layout, asked: dict[str, Any]) -> None:
    """Check that a folder is free or has the same identity.

    Raises:
        InputError: the folder has another identity or other content.
    """
    directory = layout.directory
    found = list(directory.iterdir()) if directory.is_dir() else []
    # Checked after listing the folder: a job that started meanwhile wrote this file first.
    if not (directory / dataset.IDENTITY).exists():
        ours = (layout.reports, directory / QUARANTINE)
        if not all(path in ours or is_draft(path) for path in found):
            raise InputError(
                f"{directory} (--out) holds something other than prepared images: name another "
                "folder, or empty it."
            )
        return
    began = dataset.read_identity(directory)
    for key in ("format", "source", "size", "rows_per_shard", "value_range", "views"):
        if began.get(key) != asked[key]:
            raise InputError(
                f"{directory} (--out) was begun with {key} {began.get(key)}, not "
                f"{asked[key]}: name another folder, or delete it."
            )
    if began != asked:
        raise InputError(
            f"{directory} (--out) was begun with the same source and size, but the table has "
            "changed since: name another folder, or delete it."
        )


def claim(layout: Layout, asked: dict[str, Any]) -> None:
    """Write the identity into a free folder; the first call wins.

    Raises:
        InputError: see ``check_claim``.
    """
    check_claim(layout, asked)
    path = layout.directory / dataset.IDENTITY
    if not path.exists():
        layout.directory.mkdir(parents=True, exist_ok=True)
        draft = draft_of(path)
        try:
            draft.write_text(json.dumps(asked, indent=1), encoding="utf-8")
            _link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        check_claim(layout, asked)
    layout.reports.mkdir(exist_ok=True)


def _link(draft: Path, path: Path) -> None:
    """Give a complete file its name unless that is taken."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        os.replace(draft, path)


@contextlib.contextmanager
def at_work(layout: Layout) -> Iterator[BinaryIO]:
    """Yield the claim of a folder, with a lock that all calls at work in the folder share."""
    import fcntl  # not on Windows, where there is no ArrayRecord either

    # NFS locks only files that are open for writing.
    with (layout.directory / dataset.IDENTITY).open("r+b") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        yield file


def is_alone(file: BinaryIO) -> bool:
    """Whether no other call is at work in the folder of a claim; if so, others wait for this one.

    Args:
        file: claim of the folder, from ``at_work``.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(file, fcntl.LOCK_SH)  # the attempt has released it
        return False
    except OSError:  # a file system without locks: another call may be at work
        return False
    return True


def remove_leftovers(layout: Layout) -> None:
    """Remove half-written files but the drafts of shards; no other call may be at work."""
    for path in (*layout.directory.iterdir(), *layout.reports.iterdir()):
        if is_draft(path):
            path.unlink()
        elif path.name.startswith(_HIDDEN) and path.parent == layout.directory:
            shutil.rmtree(path)


def withdraw(layout: Layout, indices: Iterable[int]) -> None:
    """Remove shards, and the claim and folder if nothing is left; no other call may be at work.

    Args:
        layout: layout of the data set.
        indices: numbers of the shards to remove, finished or not.
    """
    for index in indices:
        layout.report(index).unlink(missing_ok=True)
        layout.shard(index).unlink(missing_ok=True)
    if not any(layout.reports.iterdir()):
        layout.reports.rmdir()
        (layout.directory / dataset.IDENTITY).unlink()
        with contextlib.suppress(OSError):  # it holds other files
            layout.directory.rmdir()
