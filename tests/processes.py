"""The processes in which Ray trains, found from outside."""

from pathlib import Path

from gisgd_ray.notice import trial_processes


def training_below(driver: int) -> list[int]:
    """Those that hold a trial and descend from a driver's process, by way of Ray's."""

    def is_below(pid: int) -> bool:
        while pid not in (driver, 0):
            pid = _parent(pid)
        return pid == driver

    return [pid for pid in trial_processes() if is_below(pid)]


def _parent(pid: int) -> int:
    """0 if the process is gone."""
    try:
        # "pid (name) state ppid ...": the name may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0
