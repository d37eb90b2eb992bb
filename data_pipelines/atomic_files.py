"""Files that appear whole or not at all."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_DRAFT = re.compile(r".+\.[0-9a-f]{32}\.tmp")


def draft_of(path: Path) -> Path:
    """A name beside ``path`` that is unlike any other's, so that two processes may write it."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def is_draft(path: Path) -> bool:
    """Whether a file has a name that ``draft_of`` gives."""
    return _DRAFT.fullmatch(path.name) is not None


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Gives another name to write to; at the end the file takes the place of ``path``."""
    draft = draft_of(path)
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Opens a text file for writing under another name; at the end it takes the place of ``path``.

    Lines end as they are written, so that ``csv`` may write to it.
    """
    with whole_path(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        yield file
