"""The one exception that a user sees as a sentence."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Something given from outside is wrong: a file, a row, a key or a value.

    The message is one sentence that names what was wrong, where, and what to do about it. The
    commands print it without a traceback and exit with code 2.
    """


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.0)[0]
    return f"did you mean {near!r}? (known: {', '.join(known)})"
