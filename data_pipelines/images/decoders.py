"""Open image files, limit their size and silence the warnings of their decoders."""

import contextlib
import io
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# The largest detectors give about 20 megapixels. Pillow's own limit is above and only warns.
MAX_PIXELS = 80_000_000

# This filter stays: removing it afterwards is not safe in the loader's threads.
_IGNORE = ("ignore", None, Warning, re.compile(r"(PIL|pydicom|highdicom)\b"), 0)
_SILENT = logging.CRITICAL + 1
_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg")
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
)


class TooManyPixelsError(ValueError):
    """Report an image whose header claims more than ``MAX_PIXELS``."""


@contextlib.contextmanager
def opened(source: Path | bytes) -> Iterator[BinaryIO]:
    """Open a file, or the content of one.

    Whatever is not a file is refused before it is opened, which may wait forever for a pipe.

    Raises:
        ValueError: it is not a file.
        OSError: it does not exist, or a folder above it cannot be read.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        mode = os.stat(source).st_mode
    except FileNotFoundError:
        if os.path.islink(source):
            raise ValueError("it is a link to a file that does not exist") from None
        raise
    if not stat.S_ISREG(mode):
        if stat.S_ISDIR(mode):
            os.scandir(source).close()  # a folder that cannot be read has that error
        kind = next((name for test, name in _KINDS if test(mode)), "device")
        raise ValueError(f"it is a {kind}, not a file")
    with source.open("rb") as file:
        yield file


def check_size(width: int, height: int) -> None:
    """Refuse an image whose header claims no pixels or more than ``MAX_PIXELS``.

    Raises:
        ValueError: the reason, without a file's name; ``TooManyPixelsError`` if it is too large.
    """
    if width < 1 or height < 1:
        raise ValueError(f"its header claims {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise TooManyPixelsError(
            f"its header claims {width} x {height} pixels, more than the "
            f"{MAX_PIXELS // 1_000_000} million allowed"
        )


def quiet_decoders() -> None:
    """Silence the warnings of Pillow, pydicom and highdicom in this process.

    They are either harmless (an odd tag), or this package refuses the file itself (too many pixels,
    truncated data).
    """
    if warnings.filters[:1] != [_IGNORE]:
        warnings.filterwarnings("ignore", category=Warning, module=_IGNORE[3].pattern)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if logger.level != _SILENT:
            logger.setLevel(_SILENT)
