"""Limit the size of images and silence the warnings of their decoders."""

import logging
import re
import warnings

# The largest detectors give about 20 megapixels. Pillow's own limit is above and only warns.
MAX_PIXELS = 80_000_000

# This filter stays: removing it afterwards is not safe in the loader's threads.
_IGNORE = ("ignore", None, Warning, re.compile(r"(PIL|pydicom)\b"), 0)
_SILENT = logging.CRITICAL + 1
_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg")


def check_size(width: int, height: int) -> None:
    """Refuse an image whose header claims no pixels or more than ``MAX_PIXELS``.

    Raises:
        ValueError: the reason, without a file's name.
    """
    if width < 1 or height < 1:
        raise ValueError(f"its header claims {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"its header claims {width} x {height} pixels, more than the "
            f"{MAX_PIXELS // 1_000_000} million allowed"
        )


def quiet_decoders() -> None:
    """Silence the warnings of Pillow and pydicom in this process.

    They are either harmless (an odd tag), or this package refuses the file itself (too many pixels,
    truncated data).
    """
    if warnings.filters[:1] != [_IGNORE]:
        warnings.filterwarnings("ignore", category=Warning, module=_IGNORE[3].pattern)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if logger.level != _SILENT:
            logger.setLevel(_SILENT)
