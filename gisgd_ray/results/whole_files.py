"""Files that are written as a whole: a reader sees the old content or the new, never a part.

A results folder may be anybody's, and what lies in it is data: nothing is written through a link
that is found there.
"""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gisgd_ray.errors import UserError

LINKS_OF_ITS_OWN = "wandb"
"""W&B makes links in its folder, and only ever replaces them."""


def replace_file(path: Path, content: bytes) -> None:
    """Put a file into its place, safe on the disk before it appears.

    Raises:
        OSError: there is no room, or no way to the place; what was there stays.
    """

    def write(file: BinaryIO) -> None:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

    replace_by(path, write)


def replace_by(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The same with a function that writes to the file it is given."""
    # A name that nobody else has: two machines may write the same file, one of them believed dead.
    partial = path.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:  # never through what is there
            write(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def unlinked(path: str, flags: int) -> int:
    """An ``opener`` for a file that is gone on with: OSError where it is a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def require_no_links(folder: Path) -> None:
    """See that no file or folder of a sweep's folder is a link, or a device.

    The folder itself may be one, or lie behind one: that is its owner's choice.

    Raises:
        UserError: one is.
    """
    for entry in _entries(folder):
        _require_plain(entry, folder)
        if entry.is_dir() and entry.name != LINKS_OF_ITS_OWN:
            for inner in _entries(Path(entry.path)):
                _require_plain(inner, folder)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # not made yet, or gone since
        return []


def _require_plain(entry: os.DirEntry[str], folder: Path) -> None:
    if entry.is_symlink():
        what = "a link, and nothing is written through a link in a folder of results"
    elif not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
        what = "neither a file nor a folder"
    else:
        return
    raise UserError(f"{entry.path} is {what}; remove it, or choose another folder than {folder}")
