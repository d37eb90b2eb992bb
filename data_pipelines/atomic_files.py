"""Write files that appear whole or not at all."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from data_pipelines.errors import InputError

_DRAFT = re.compile(r".+\.[0-9a-f]{32}\.tmp")


def draft_of(path: Path) -> Path:
    """Return a unique temporary name beside ``path``, safe for concurrent writers."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def is_draft(path: Path) -> bool:
    """Whether a file has a name that ``draft_of`` returns."""
    return _DRAFT.fullmatch(path.name) is not None


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` at the end."""
    draft = draft_of(path)
    with _named(path, draft):
        try:
            yield draft
            os.replace(draft, path)
        finally:
            with suppress(OSError):  # a read-only disk refuses what is not there, too
                draft.unlink(missing_ok=True)


@contextmanager
def _named(path: Path, draft: Path) -> Iterator[None]:
    """Let errors name ``path``: those of ``write`` name no file, others the draft."""
    try:
        yield
    except OSError as error:
        if str(error.filename or draft).startswith(str(draft)):
            error.filename = str(path)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a temporary text file that replaces ``path`` at the end.

    Newlines are not translated, which the ``csv`` module needs.
    """
    with whole_path(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        yield file


@contextmanager
def whole_files(directory: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of ``directory`` at the end.

    None of them is replaced before all are written.
    """
    draft = draft_of(directory / "files")
    with _named(directory, draft):
        draft.mkdir()
        try:
            yield draft
            for path in sorted(draft.iterdir()):
                os.replace(path, directory / path.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def check_writable(directory: Path, remedy: str) -> None:
    """Check that files can be written to a folder, which need not exist yet.

    Args:
        remedy: end of the sentence, such as "name another folder with --out".

    Raises:
        InputError: it is read-only, or a file is in its way.
    """
    there = next(p for p in (directory, *directory.absolute().parents) if os.path.exists(p))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise InputError(f"{directory} cannot be written ({there} is read-only): {remedy}.")
