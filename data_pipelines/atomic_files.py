"""Write files that appear whole or not at all."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


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
    draft.mkdir()
    try:
        yield draft
        for path in sorted(draft.iterdir()):
            os.replace(path, directory / path.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
