"""The one exception that a user sees as a sentence."""


class InputError(Exception):
    """Something given from outside is wrong: a file, a row, a key or a value.

    The message is one sentence that names what was wrong, where, and what to do about it. The
    commands print it without a traceback and exit with code 2.
    """
