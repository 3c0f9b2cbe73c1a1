"""How many CPUs this process may use."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OURS = Path("/proc/self/cgroup")


def usable_cpus(cgroups: Path = CGROUPS, ours: Path = OURS) -> int:
    """CPUs that this process may run on and has the time of, at least one.

    A machine may have more: a process is bound to some by its affinity (``taskset``, Slurm), and a
    container is given the time of some by its control group (``docker run --cpus 2``).
    """
    try:
        bound = len(os.sched_getaffinity(0))
    except AttributeError:  # no such call on macOS
        bound = os.cpu_count() or 1
    return max(1, int(min(bound, _time_share(cgroups, ours))))


def _time_share(cgroups: Path, ours: Path) -> float:
    """CPUs whose time the control groups grant, the narrowest of those around this process."""
    try:
        lines = ours.read_text().splitlines()
    except OSError:
        return float("inf")  # no control groups: not Linux
    shares = []
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and "cpu" not in names.split(","):
            continue
        top = cgroups / names if names else cgroups
        # A container may see its own group as the top, and not the path to it.
        for group in (Path(path), *Path(path).parents):
            folder = top / group.relative_to("/")
            shares.append(_quota(folder / "cpu.max"))
            shares.append(_quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))
    return min(shares, default=float("inf"))


def _quota(*files: Path) -> float:
    """Microseconds of CPU in each period of so many; infinite where there is no limit."""
    try:
        quota, period = " ".join(path.read_text() for path in files).split()
        return float(quota) / float(period) if float(quota) > 0 else float("inf")
    except (OSError, ValueError, ZeroDivisionError):  # "max 100000"
        return float("inf")
