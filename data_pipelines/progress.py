"""Progress bars on a terminal, and an occasional plain line elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")

_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BEFORE_BAR = 1.0
_LINE = "{desc}: {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_fmt}{postfix}]"


def progress(
    iterable: Iterable[_Item] | None = None,
    *,
    total: int | None = None,
    desc: str,
    unit: str,
    leave: bool = False,
) -> "tqdm[_Item]":
    """Show on stderr how far a piece of work is.

    A terminal gets a bar after one second. Anything else, such as a log file, gets a plain line a
    minute, without carriage returns, and nothing at all from work that is shorter. Neither appears
    where the level of the logger ``data_pipelines.progress`` is above WARNING.

    Args:
        iterable: items to count as they are taken; without it, call ``update``.
        total: number of items; by default the iterable's length.
        desc: activity, such as ``"checking image files"``.
        unit: plural noun, such as ``"images"``; ``"B"`` is shown as kB, MB or GB.
        leave: whether a finished bar stays on the terminal.

    Returns:
        An iterable over the items and a context manager, with ``update``, ``set_postfix`` and
        ``close``.
    """
    if sys.stderr is None or not sys.stderr.isatty() or not _shown():
        return _Lines(iterable, total, desc, unit)
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=_spaced(unit),
        unit_scale=unit == "B",
        leave=leave,
        delay=_SECONDS_BEFORE_BAR,
        dynamic_ncols=True,
    )


class _Lines(tqdm):
    """Print a plain line a minute in place of a bar.

    A disabled bar counts nothing, so this one counts and prints by itself.
    """

    def __init__(self, iterable: Iterable | None, total: int | None, desc: str, unit: str) -> None:
        super().__init__(iterable, total=total, disable=True)
        self.desc, self.unit, self.postfix = desc, unit, None
        self._start = self._last = time.monotonic()

    def __iter__(self) -> Iterator:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        """Count ``n`` more items."""
        self.n += n
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES or not _shown():
            return
        self._last = now
        line = self.format_meter(
            self.n,
            self.total,
            now - self._start,
            prefix=self.desc,
            unit=_spaced(self.unit),
            unit_scale=self.unit == "B",
            bar_format=_LINE if self.total else _LINE_WITHOUT_TOTAL,
            postfix=self.postfix,
        )
        print(line, file=sys.stderr, flush=True)


def _shown() -> bool:
    return logging.getLogger(__name__).isEnabledFor(logging.WARNING)


def _spaced(unit: str) -> str:
    return unit if unit == "B" else f" {unit}"
