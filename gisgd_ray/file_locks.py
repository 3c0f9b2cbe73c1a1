"""Locks between processes, on disks that have none as well."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a network disk answers that keeps no locks."""
SOFT_WAIT_S = 1.0
"""A mark whose process is gone is taken away at the first try; the second gets it."""


class LockedError(Exception):
    """Another process has the lock; the message: what to do if that is gone, or nothing."""


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of this name, on which the system itself watches.

    On a disk without locks a file beside it is the lock, with the process and its machine in it: on
    the same machine it ends with its process, of another machine's nobody knows.

    Raises:
        LockedError: another process has it (without ``wait``).
        OSError: the place cannot be written.
    """
    lock: FileLock | SoftFileLock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise LockedError from None
    except OSError as fault:
        if fault.errno not in _NO_LOCKS:
            raise
        mark = path.with_name(f"{path.name}-held")
        lock = SoftFileLock(mark)
        try:
            lock.acquire(timeout=-1 if wait else SOFT_WAIT_S)
        except Timeout:
            hint = f" (if that is gone: {mark} says which it was, and may be deleted)"
            raise LockedError(hint) from None
    try:
        yield
    finally:
        lock.release()
