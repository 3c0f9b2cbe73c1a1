"""The processes in which Ray trains, found from outside."""

import contextlib
import os
import time
from pathlib import Path

from gisgd_ray.runner.notice import trial_processes


def training_below(driver: int) -> list[int]:
    """Those that hold a trial and descend from a driver's process, by way of Ray's."""

    def is_below(pid: int) -> bool:
        while pid not in (driver, 0):
            pid = _parent(pid)
        return pid == driver

    return [pid for pid in trial_processes() if is_below(pid)]


def runs(pid: int, method: str) -> bool:
    """Whether the process of a trial is in this method of it now, by Ray's name of the process."""
    try:
        return f".{method}" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def children_of(parent: int) -> list[int]:
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if _parent(pid) == parent]


def own(driver: int, name: str) -> int | None:
    """The process of the driver's own Ray that runs the program of this name, if any."""
    for pid in children_of(driver):
        with contextlib.suppress(OSError):
            program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
            if program.endswith(f"/{name}"):
                return pid
    return None


def private_folder_of(process: int, *, seconds: float = 60) -> Path:
    """Where the own Ray keeps what it needs, from one of its open files, once it has any."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for link in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                parts = Path(os.readlink(link)).parts
                if (ours := f"gisgd-{os.geteuid()}") in parts:
                    return Path(*parts[: parts.index(ours) + 2])
        time.sleep(0.1)
    raise AssertionError("no file of it is in a private folder")


def left_of(folder: Path) -> list[str]:
    """Processes that still write into a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link).startswith(str(folder)) for link in (path / "fd").iterdir()):
                found.append((path / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


def _parent(pid: int) -> int:
    """0 if the process is gone."""
    try:
        # "pid (name) state ppid ...": the name may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0
