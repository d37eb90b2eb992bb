"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Opens a text file for writing under another name; at the end it takes the place of ``path``.

    Lines end as they are written, so that ``csv`` may write to it.
    """
    draft = path.with_name(path.name + ".tmp")
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
