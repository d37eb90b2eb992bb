"""The exception that a user sees as one sentence."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Report wrong input: a file, a row, a key or a value.

    The message is one sentence, "problem: remedy". The commands print it without a traceback and
    exit with code 2.
    """


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the nearest known one, and all.

    Where no known name is near, none is suggested.
    """
    known = list(known)
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    if not near:
        return f"choose one of {', '.join(known)}."
    return f"did you mean {near[0]!r}? (known: {', '.join(known)})"
