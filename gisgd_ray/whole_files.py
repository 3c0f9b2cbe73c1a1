"""Files that are written as a whole: a reader sees the old content or the new, never a part."""

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Put a file into its place, safe on the disk before it appears.

    Raises:
        OSError: there is no room, or no way to the place; what was there stays.
    """

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    replace_by(path, write)


def replace_by(path: Path, write: Callable[[Path], object]) -> None:
    """The same with a function that writes the file at the path it is given."""
    # Two machines may write the same file, one of them believed dead.
    partial = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
