"""Turn Ctrl-C and SIGTERM into exit codes, in a command and in the processes that it starts."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]
_PATIENCE = 5.0  # seconds, half of what Docker gives
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
    _handle(lambda number, _: _exit(number))


def _exit(number: int) -> None:
    with contextlib.suppress(OSError):  # nobody may be left to read it
        os.write(2, f"{Stopped(number)}\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def caught(*, raising: bool) -> Iterator[list[int]]:
    """Catch the signals while the block runs; the handlers before come back at its end.

    Args:
        raising: whether each one raises ``Stopped`` in the main thread, which ends the process if
            it has not left the block in time, as when XLA compiles. Otherwise only Ctrl-C a second
            time does, after a second in which wrappers may pass the first one on.

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
        with _in_time() if raising else _unwatched():
            yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """End the process if a signal comes and the block lasts a while longer."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # Python writes the numbers of signals to it, whatever is running
    left = threading.Event()

    def wait() -> None:
        with ours:
            while number := ours.recv(1):
                if number[0] in _NAMES and not left.wait(_PATIENCE):
                    _exit(number[0])

    report = sys.unraisablehook

    def again(lost: Any) -> None:
        """Send the signal again if its exception came where Python ignores all, as in `__del__`."""
        if isinstance(lost.exc_value, Stopped):
            threading.Timer(0.05, os.kill, (os.getpid(), lost.exc_value.number)).start()
        else:
            report(lost)

    threading.Thread(target=wait, daemon=True).start()
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    sys.unraisablehook = again
    try:
        yield
    finally:
        left.set()
        sys.unraisablehook = report
        signal.set_wakeup_fd(before)
        theirs.close()


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


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
