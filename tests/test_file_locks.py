"""Locks between processes, where the disk has locks and where it has none."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from gisgd_ray.file_locks import file_lock

PROGRAM = """
import errno, fcntl, sys, time
from pathlib import Path
from gisgd_ray.file_locks import LockedError, file_lock
if int(sys.argv[2]):
    def flock(fd, how):  # what a disk without locks answers
        raise OSError(int(sys.argv[2]), "no locks available")
    fcntl.flock = flock
try:
    with file_lock(Path(sys.argv[1]), wait=False):
        print("held", flush=True)
        sys.stdin.read()
except LockedError as fault:
    print("refused" + str(fault))
"""


def start(path: Path, answer: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), str(answer)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("answer", [0, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_one_process_has_it_at_a_time_and_a_killed_one_no_more(answer: int, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    first = start(path, answer)
    assert first.stdout
    assert first.stdout.readline() == "held\n"
    said, _ = start(path, answer).communicate(timeout=30)
    assert said.startswith("refused")
    assert ("-held says which it was, and may be deleted" in said) == bool(answer)
    first.kill()
    first.communicate()
    assert start(path, answer).communicate(timeout=30)[0] == "held\n"
    assert start(path, answer).communicate(timeout=30)[0] == "held\n"
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_a_place_that_cannot_be_written_is_no_missing_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x"
    with pytest.raises(OSError, match=r"exists|Not a directory"), file_lock(path, wait=False):
        pass
