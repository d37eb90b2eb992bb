"""Parse the options of a command; report in one sentence what ended it."""

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from data_pipelines import stopping
from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.stopping import Stopped

_LOG = logging.getLogger("data_pipelines")


def guarded(
    work: Callable[[], int],
    describe: Callable[[BaseException], str | None] | None = None,
    log: logging.Logger = _LOG,
) -> int:
    """Run a command and return its exit code.

    Bad input and a machine that refuses become one sentence on standard error, and exit code 2;
    Ctrl-C and SIGTERM 130 and 143. Faults of the program keep their traceback.

    Args:
        work: returns an exit code.
        describe: returns a sentence about an error or None; ``sentence_of`` by default.
        log: gets the traceback of what becomes a sentence.
    """
    with stopping.caught(raising=True) as received:
        try:
            return work()
        except BrokenPipeError:  # whoever read the results has read enough
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the very end
            return 141  # 128 + SIGPIPE, which Windows lacks
        except BaseException as error:
            # A library may have turned the exception of a signal into another one.
            if received or isinstance(error, KeyboardInterrupt):
                stopped = Stopped(getattr(error, "number", *received[:1] or [signal.SIGINT]))
                print(stopped, file=sys.stderr)
                return 128 + stopped.number
            sentence = (describe or sentence_of)(error)
            if sentence is None:
                raise
            log.debug("Raised here:", exc_info=True)
            print(f"error: {sentence}", file=sys.stderr)
            return 2


def sentence_of(error: BaseException) -> str | None:
    """Return a sentence about bad input or a machine that refuses; None for a program's fault."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "The memory is used up: end other programs, or use a machine with more."
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "No thread can be started: raise the limits (ulimit -u, ulimit -v, --pids-limit)."
    if not isinstance(error, OSError) or error.errno is None:
        return None
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}no space is left on the disk: free some and start the same command again."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{where}{error.strerror}: change its permissions, or name another place."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}{error.strerror}: raise the limit (ulimit -n)."
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR):
        return f"{where}{error.strerror}: correct the path."
    return f"{where}{error.strerror}: fix this and start the same command again."


class CommandParser(argparse.ArgumentParser):
    """Parse arguments, raise ``InputError``, and show an example in the help.

    Options and positional arguments may come in any order.

    Args:
        command: name after ``charm-jax``, such as ``prepare``.
        description: sentence on what the command does.
        example: arguments of a typical call, after the command's name.
        notes: further paragraphs of the help.
    """

    def __init__(self, command: str, description: str, example: str, notes: str = "") -> None:
        prog = f"charm-jax {command}"
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example:\n  {prog} {example}\n\n{notes}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        noise = self.add_mutually_exclusive_group()
        text = "show warnings and errors only"
        noise.add_argument("-q", "--quiet", action="store_true", help=text)
        text = "show debug messages, too"
        noise.add_argument("-v", "--verbose", action="store_true", help=text)

    def parse_args(self, args: list[str] | None = None) -> argparse.Namespace:
        """Parse the command line.

        Raises:
            InputError: an option is unknown, missing or has an unusable value.
        """
        options, unknown = self.parse_known_args(args)
        for text in unknown:
            if not text.startswith("-"):
                raise InputError(f"Unexpected argument {text!r}: options start with --.")
            name = text.split("=", 1)[0]
            known = [o for a in self._actions for o in a.option_strings if o.startswith("--")]
            raise InputError(f"There is no option {name}: {did_you_mean(name, known)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments as ``InputError``."""
        raise InputError(f"{message[:1].upper()}{message[1:]} (see {self.prog} --help).")

    def run(self, work: Callable[[argparse.Namespace], int], argv: list[str] | None) -> int:
        """Parse the command line, do the work, and return the exit code; see ``guarded``."""

        def parsed() -> int:
            options = self.parse_args(argv)
            _set_verbosity(quiet=options.quiet, verbose=options.verbose)
            _LOG.debug("Options: %s", vars(options))
            return work(options)

        return guarded(parsed)


def _set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Hide progress, or print debug messages to standard error."""
    # Progress bars and lines follow this logger's level.
    progress = logging.getLogger("data_pipelines.progress")
    progress.setLevel(logging.ERROR if quiet else logging.NOTSET)
    _LOG.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    if verbose and not _LOG.handlers:
        _LOG.addHandler(logging.StreamHandler())
