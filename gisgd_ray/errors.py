"""The one exception type a user is meant to read: a sentence that names what is wrong."""

from typing import Any


class UserError(Exception):
    """Bad input or a fault outside the program; the message is one clear sentence.

    Command lines print the message alone (no traceback) and exit with status 2.
    """


def one_line(text: str, longest: int = 10_000) -> str:
    """The text on one line, and no longer than that.

    >>> one_line("Linear(\\n  (0): ReLU()\\n)"), one_line("abcdef", 3)
    ('Linear( (0): ReLU() )', 'abc ...')
    """
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[:longest]} ..."


def layer_is(name: str, layer: Any) -> str:
    """A layer in a sentence: on one line, and without the layers inside it."""
    whole = "" if name else " (the network as a whole)"
    return f"{name!r}{whole} is {type(layer).__name__}({one_line(layer.extra_repr())})"


class DataError(UserError):
    """A data file is missing or damaged; names the file, what was expected, how to supply it."""
