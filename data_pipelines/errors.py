"""The exception that a user sees as one sentence."""

import difflib
from collections.abc import Iterable

_MOST_LISTED = 20
_NEAR = 0.6  # least similarity of a suggestion


class InputError(Exception):
    """Report wrong input: a file, a row, a key or a value.

    The message is one sentence, "problem: remedy". The commands print it without a traceback and
    exit with code 2.
    """


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name.

    It suggests the nearest known name, if one is near or begins like it, and lists at most 20.
    """
    known = list(known)
    more = f", ... ({len(known)} in all)" if len(known) > _MOST_LISTED else ""
    listed = ", ".join(known[:_MOST_LISTED]) + more
    near = difflib.get_close_matches(value, known, n=1, cutoff=_NEAR)
    near = near or [name for name in known if len(value) > 1 and name.startswith(value)]
    return f"did you mean {near[0]!r}? (known: {listed})" if near else f"choose one of {listed}."
