"""Parse the options of a command; report errors in one sentence."""

import argparse
from typing import NoReturn

from data_pipelines.errors import InputError, did_you_mean


class CommandParser(argparse.ArgumentParser):
    """Parse arguments, raise ``InputError``, and show an example in the help.

    Options and positional arguments may come in any order.

    Args:
        module: name that ``python -m`` runs, such as ``data_pipelines.prepare``.
        description: sentence on what the command does.
        example: arguments of a typical call, after the module's name.
        notes: further paragraphs of the help.
    """

    def __init__(self, module: str, description: str, example: str, notes: str = "") -> None:
        prog = f"python -m {module}"
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example:\n  {prog} {example}\n\n{notes}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

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
