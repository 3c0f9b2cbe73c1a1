"""A copy of a sweep's folder in a bucket, so that the results outlive the machine they came to.

The driver works on a folder of its own disk (a journal is appended to, which buckets cannot do) and
pushes what has changed; a driver elsewhere pulls all of it before it goes on.
"""

import os
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gisgd_ray.errors import UserError
from gisgd_ray.results.journal import extent
from gisgd_ray.results.storage import CHECKPOINTS, Storage
from gisgd_ray.results.whole_files import replace_file, require_no_links

OWNER = ".driver"
"""Who pushes: a driver that finds another's name there has been replaced."""
CLAIM = f"{OWNER}-"
"""With a name of its own behind it, a driver says that it is about to write :data:`OWNER`."""
TRIES, PAUSE_S = 5, 2.0
"""Drivers that begin in the same moment all stand back, and try again after up to so many seconds.
"""
LEFT_OUT = (CHECKPOINTS, "ray")
"""Checkpoints go to the bucket by themselves; what Ray notes is of no use to another driver."""


class Mirror:
    """``folder`` on this disk and its copy at ``storage``."""

    def __init__(self, folder: Path, storage: Storage):
        self.folder, self.storage = folder, storage
        self._pushed: dict[str, tuple[int, int]] = {}
        self._name = f"{os.uname().nodename} {os.getpid()} {uuid.uuid4()}".encode()

    def pull(self, only: str = "") -> int:
        """Fetch what the bucket has and this folder has not, in a folder ``only`` or all; how many.

        Of a journal that is in both, the one that goes further is kept: to the trial's end, or to a
        later step. Its length says nothing, since journals are also written anew.
        """
        fetched = 0
        require_no_links(self.folder)
        try:
            remote = self.storage.sizes(recursive=True)
        except OSError as fault:
            raise UserError(_unreachable(self.storage, fault)) from None
        for name, size in remote.items():
            path = self.folder / name
            if name.startswith(OWNER) or name.split("/")[0] in LEFT_OUT:
                continue
            if ".." in name.split("/"):  # a bucket's names are not paths, and may be anybody's
                continue
            if not name.startswith(only) or not self._goes_further(name, size, path):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, self.storage.read(name))
            fetched += 1
        return fetched

    def _goes_further(self, name: str, size: int, path: Path) -> bool:
        """Whether the bucket's file is to take the place of this folder's."""
        if not path.exists():
            return True
        if not name.startswith("journal/"):
            return path.stat().st_size < size if name.startswith("wandb/") else False
        remote, local = self.storage.read(name), path.read_bytes()
        return remote != local and extent(remote) > extent(local)

    @contextmanager
    def owned(self, take_over: bool) -> Iterator[None]:
        """Inside, this driver alone pushes; begins with a pull and ends with a push.

        A lock would not be freed when its holder's machine is lost, and how old a note is says
        nothing where clocks are apart: who has the place to himself is for a person to know.

        Raises:
            UserError: another driver has the place, and ``take_over`` is false.
        """
        try:
            for left in reversed(range(TRIES)):
                other = self._claimed(take_over)
                if other is None:
                    break
                if not left or not other.startswith(CLAIM):
                    raise UserError(self._taken(other))
                time.sleep(random.uniform(0, PAUSE_S))
        except OSError as fault:
            raise UserError(_unreachable(self.storage, fault)) from None
        pulled = False
        try:
            self.pull()
            pulled = True
            yield
        finally:
            if self._is_owner():
                if pulled:  # else what is here may be less than what is there
                    self.pull("wandb/")  # offline runs of other machines
                    self.push()
                self.storage.delete(OWNER)

    def _claimed(self, take_over: bool) -> str | None:
        """None once this driver is the owner; else the name of another's note, which stays.

        Buckets know no "write if there is none" that pyarrow could ask for. So each driver first
        leaves a claim under a name of its own, then looks: of two at a time at least the one that
        looks last sees the other's, and whoever sees one stands back. It takes no clocks, only that
        what was written is seen by who asks after that, as S3 and Google's storage promise. With
        ``take_over`` nobody is asked; of two that take over, the later one has the place.
        """
        if self._note(OWNER) and not take_over:
            return OWNER
        mine = f"{CLAIM}{uuid.uuid4().hex}"
        self.storage.write(mine, self._name)
        try:
            others = [n for n in self.storage.names() if n.startswith(CLAIM) and n != mine]
            if take_over:
                for other in others:
                    self.storage.delete(other)
            elif others:
                return others[0]
            elif self._note(OWNER):  # written, and its claim withdrawn, in between
                return OWNER
            self.storage.write(OWNER, self._name)
        finally:
            self.storage.delete(mine)
        return None

    def _note(self, name: str) -> list[str]:
        """Machine and process of the driver that left a note; empty if there is none."""
        try:
            return [*self.storage.read(name).decode(errors="replace").split(), "?", "?"][:2]
        except FileNotFoundError:
            return []

    def _taken(self, name: str) -> str:
        machine, process = self._note(name) or ("another machine", "?")
        return (
            f"a driver on {machine} (process {process}) is writing to {self.storage}; wait for it, "
            "choose another --out, or add --take-over if it is gone"
        )

    def push(self) -> int:
        """Copy every file that has changed since the last time; how many.

        Raises:
            UserError: another driver has claimed the place since.
            OSError: the bucket does not answer; the next push makes up for it.
        """
        if not self._is_owner():
            raise UserError(
                f"another driver has begun to write to {self.storage}; this one stops, and "
                f"what it has measured is in {self.folder}"
            )
        copied = 0
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            hidden = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            if hidden or name.split("/")[0] in LEFT_OUT or path.is_symlink() or not path.is_file():
                continue
            if not name.endswith(".partial"):
                copied += self.push_file(path)
        return copied

    def push_file(self, path: Path) -> bool:
        """Copy one file if it has changed since the last time; whether it had.

        Raises:
            OSError: the bucket does not answer.
        """
        name = path.relative_to(self.folder).as_posix()
        state = path.stat().st_mtime_ns, path.stat().st_size
        if self._pushed.get(name) == state:
            return False
        self.storage.write(name, path.read_bytes())
        self._pushed[name] = state
        return True

    def _is_owner(self) -> bool:
        return OWNER in self.storage.names() and self.storage.read(OWNER) == self._name


def _unreachable(storage: Storage, fault: OSError) -> str:
    reason = str(fault).splitlines()[0]
    return (
        f"{storage} cannot be used for results ({reason}); does the bucket exist, and do this "
        "machine's credentials allow to write to it?"
    )
