"""The one exception type a user is meant to read: a sentence that names what is wrong."""

import itertools
import re
from typing import Any

ERROR = re.compile(r"[\w.]+(?:Error|Exception|Interrupt|Exit|Warning)(?::|$)|[\w.]*Error\b.*:")

LONGEST = 600
"""Characters of an error on the terminal; the page has all of it."""


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


def error_line(error: object) -> str:
    """What a traceback says was wrong, on one line: its last paragraph that begins with an error's
    name.

    >>> error_line("Traceback:\\n  f()\\ntorch.AcceleratorError: CUDA error\\nUse X.\\n\\nNote\\n")
    'torch.AcceleratorError: CUDA error Use X.'
    """
    lines = str(error).strip().splitlines() or ["without a message"]
    named = [number for number, line in enumerate(lines) if ERROR.match(line)]
    paragraph = itertools.takewhile(str.strip, lines[named[-1] if named else -1 :])
    return one_line(" ".join(paragraph), LONGEST)
