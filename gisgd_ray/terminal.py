"""What the terminal, or the file in its place, can take."""

import io
import sys


def forgive() -> None:
    """Let the standard streams put ``?`` for characters that their encoding lacks.

    A log in ASCII (``PYTHONIOENCODING``, a locale) would otherwise end a program with its work done
    and its last words unsaid.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
