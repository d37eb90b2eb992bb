"""Keeps what the decoders say of odd but usable files away from the user."""

import logging
import re
import warnings

# A filter that stays: one that is put back afterwards is not safe in the loader's threads.
_IGNORE = ("ignore", None, Warning, re.compile(r"(PIL|pydicom)\b"), 0)
_SILENT = logging.CRITICAL + 1
_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg")


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
