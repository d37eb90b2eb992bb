"""The exception that a user sees as one sentence."""

import difflib
from collections.abc import Iterable

_MOST_CHOICES = 20
_MOST_LISTED = 5
_NEAR = 0.6  # least similarity of a suggestion


class InputError(Exception):
    """Report wrong input: a file, a row, a key or a value.

    The message is one sentence, "problem: remedy". The commands print it without a traceback and
    exit with code 2.
    """


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name.

    It suggests the nearest known name, if one is near or begins like it. All names of a choice of
    up to 20 are listed, and five of a longer one.
    """
    known = list(known)
    shown = listed(known) if len(known) > _MOST_CHOICES else ", ".join(known)
    near = difflib.get_close_matches(value, known, n=1, cutoff=_NEAR)
    near = near or [name for name in known if len(value) > 1 and name.startswith(value)]
    return f"did you mean {near[0]!r}? (known: {shown})" if near else f"choose one of {shown}."


def listed(names: Iterable[object], separator: str = ", ") -> str:
    """Return at most five names, and the number of the others, as part of a sentence."""
    names = list(map(str, names))
    shown = separator.join(names[:_MOST_LISTED])
    left = len(names) - _MOST_LISTED
    return f"{shown} and {left:,} more" if left > 0 else shown
