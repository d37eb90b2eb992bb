"""Turn Ctrl-C and SIGTERM into exit codes, in a command and in the processes that it starts."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(KeyboardInterrupt):
    """Unwind a command that got the signal ``number``."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(f"stopped by {_NAMES[number]}: start the same command again.")


def exit_at_once() -> None:
    """Let the signals end this process by themselves; call it before anything slow is imported.

    An exception would end imports half-way, and some of them would swallow it.
    """

    def leave(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # nobody may be left to read it
            os.write(2, f"{Stopped(number)}\n".encode())
        os._exit(128 + number)

    _handle(leave)


@contextlib.contextmanager
def caught(*, raising: bool) -> Iterator[list[int]]:
    """Catch the signals while the block runs; the handlers before come back at its end.

    Args:
        raising: whether each one raises ``Stopped`` in the main thread. Otherwise only Ctrl-C a
            second time does, after a second in which wrappers may pass the first one on.

    Yields:
        A list that gets the number of each one.
    """
    received: list[int] = []
    since = time.monotonic()

    def note(number: int, _: FrameType | None) -> None:
        nonlocal since
        again = number == signal.SIGINT in received and time.monotonic() > since + 1
        since = since if received else time.monotonic()
        received.append(number)
        if raising or again:
            raise Stopped(number)

    before = _handle(note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _handle(handler: Handler) -> dict[int, Any]:
    """Handle the signals that are not ignored, as Ctrl-C is in the background; return the old."""
    wanted = [number for number in _NAMES if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


@contextlib.contextmanager
def for_children(*numbers: int) -> Iterator[None]:
    """Start processes that these signals do not reach, though all of a group get them.

    They inherit the mask of signals, from their first instruction. The parent ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would take the mask away
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """End this process with its parent; a killed parent would leave it waiting."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
