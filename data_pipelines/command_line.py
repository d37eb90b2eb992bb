"""Parse the options of a command; report errors in one sentence."""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import NoReturn

from data_pipelines.errors import InputError, did_you_mean

_LOG = logging.getLogger("data_pipelines")


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
        """Parse the command line, do the work, and return the exit code.

        Bad input and a disk that refuses become one sentence on standard error, and exit code 2.
        """
        try:
            options = self.parse_args(argv)
            _set_verbosity(quiet=options.quiet, verbose=options.verbose)
            _LOG.debug("Options: %s", vars(options))
            return work(options)
        except InputError as error:
            _LOG.debug("Raised here:", exc_info=True)
            print(f"error: {error}", file=sys.stderr)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print(
                f"error: {where}{error.strerror}: fix this and start the same command again.",
                file=sys.stderr,
            )
        except KeyboardInterrupt:
            print("stopped: start the same command again.", file=sys.stderr)
            return 130
        return 2


def _set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Hide progress, or print debug messages to standard error."""
    # Progress bars and lines follow this logger's level.
    progress = logging.getLogger("data_pipelines.progress")
    progress.setLevel(logging.ERROR if quiet else logging.NOTSET)
    _LOG.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    if verbose and not _LOG.handlers:
        _LOG.addHandler(logging.StreamHandler())
