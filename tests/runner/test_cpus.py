"""How many CPUs this process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gisgd_ray.runner.cpus import usable_cpus


@pytest.fixture
def _many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def cgroups(tmp_path: Path, ours: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A tree of control groups, and the file that says which are ours."""
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "ours").write_text(ours)
    return tmp_path / "cgroup", tmp_path / "ours"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_process_bound_to_one_cpu_counts_one() -> None:
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
            "from gisgd_ray.runner.cpus import usable_cpus; print(usable_cpus())",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "1\n"


def test_where_nobody_is_bound_all_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert usable_cpus(tmp_path, tmp_path / "none") == 8


@pytest.mark.usefixtures("_many")
@pytest.mark.parametrize(
    ("ours", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "50000 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, 8),
        ("0::/a\n", {"a/cpu.max": "9900000 100000\n"}, 8),
        # A container sees its own group as the top.
        ("0::/kubepods/x\n", {"cpu.max": "300000 100000\n"}, 3),
        (
            "5:memory:/m\n3:cpu,cpuacct:/c\n",
            {
                "cpu,cpuacct/c/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
                "memory/m/cpu.max": "100000 100000\n",
            },
            4,
        ),
        (
            "3:cpu,cpuacct:/c\n",
            {
                "cpu,cpuacct/c/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        ("0::/a\n", {"a/cpu.max": "what?\n"}, 8),
    ],
)
def test_the_narrowest_control_group_counts(
    ours: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    assert usable_cpus(*cgroups(tmp_path, ours, files)) == expected
