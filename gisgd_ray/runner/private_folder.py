"""A folder of this process alone for the Ray that it starts: sockets, logs and the token.

Ray's own place, ``/tmp/ray``, belongs to whoever was first on the machine, lies open to everybody,
and a long ``TMPDIR`` in front of it makes its sockets' names too long for the system.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from gisgd_ray.errors import UserError

LONGEST = 42
"""Characters of the folder's path: a socket's has 107 at most, and Ray adds
``/session_2026-11-29_14-54-30_849787_1234567/sockets/plasma_store``."""
TOKEN = "token"

_held: dict[Path, int] = {}
"""Folders of this process, each with its lock, which the system drops with the process."""


def make_private_folder() -> Path:
    """A new folder with a new token in it, below one that is open to this user alone.

    It is held until :func:`remove_private_folder`, or the end of the process. What processes left
    that were killed is removed here.

    Raises:
        UserError: there is no place for one.
    """
    faults = []
    for parent in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]):
        mine = Path(parent) / f"gisgd-{os.geteuid()}"
        folder = mine / secrets.token_hex(4)
        if len(os.fsencode(folder)) > LONGEST:
            faults.append(f"{parent}: the names of Ray's sockets would be too long")
            continue
        try:
            _require_this_users(mine)
            for lock in mine.glob("*.lock"):
                _remove_if_left(lock)
            _held[folder] = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(_held[folder], fcntl.LOCK_EX)
            folder.mkdir(mode=0o700)
            token = os.open(folder / TOKEN, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(token, "w") as file:
                file.write(secrets.token_hex(32))
            return folder
        except OSError as fault:
            remove_private_folder(folder)
            faults.append(f"{parent}: {fault.strerror or fault}")
    raise UserError(
        f"there is no folder for what Ray keeps while it runs ({'; '.join(faults)}); set TMPDIR to "
        "a folder with a short path that you may write to"
    )


def remove_private_folder(folder: Path) -> None:
    """Remove it with all in it; what is in use still, a later process removes."""
    if (held := _held.pop(folder, None)) is not None:
        os.close(held)
        _remove_if_left(Path(f"{folder}.lock"))


def _require_this_users(folder: Path) -> None:
    """Make the folder of all this user's processes, which nobody else may enter.

    Raises:
        OSError: it cannot be made, or somebody else has put something in its place.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()  # a link to another folder is none of ours
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    if not private or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is not a folder of this user alone")


def _remove_if_left(lock: Path) -> None:
    """Remove a folder that no process holds any more."""
    with contextlib.suppress(OSError), open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder := lock.with_suffix("")).exists():
            shutil.rmtree(folder)
        lock.unlink()
