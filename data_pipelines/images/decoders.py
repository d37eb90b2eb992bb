"""Limit the size of images and silence the warnings of their decoders."""

import logging
import re
import warnings

# The largest detectors give about 20 megapixels. Pillow's own limit is above and only warns.
MAX_PIXELS = 80_000_000

# A filter that stays: one that is put back afterwards is not safe in the loader's threads.
_IGNORE = ("ignore", None, Warning, re.compile(r"(PIL|pydicom)\b"), 0)
_SILENT = logging.CRITICAL + 1
_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg")


def check_size(width: int, height: int) -> None:
    """Refuses an image that claims more than ``MAX_PIXELS``, or none.

    Args:
        width: in pixels, as the header has it.
        height: in pixels, as the header has it.

    Raises:
        ValueError: the size is not usable; the text says why, without a file's name.
    """
    if width < 1 or height < 1:
        raise ValueError(f"its header claims {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"its header claims {width} x {height} pixels, more than the "
            f"{MAX_PIXELS // 1_000_000} million allowed"
        )


def quiet_decoders() -> None:
    """Silences the warnings of Pillow and pydicom in this process, warnings as errors or not.

    What they warn of is either harmless (an odd tag) or refused by this package (too many pixels,
    data cut short).
    """
    if warnings.filters[:1] != [_IGNORE]:
        warnings.filterwarnings("ignore", category=Warning, module=_IGNORE[3].pattern)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if logger.level != _SILENT:
            logger.setLevel(_SILENT)
