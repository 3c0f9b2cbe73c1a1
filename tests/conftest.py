"""One torch thread, as in a trial: sums are then taken in the same order everywhere.

`make test` runs in two processes: sweeps, which have a Ray of their own, one after another in one
of them, and all else in the other.
"""

import os
from pathlib import Path
from typing import Any

# Before torch and Ray are imported.
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    root = config.rootpath
    by_ray = {
        path.relative_to(root).as_posix()
        for path in Path(__file__).parent.rglob("test_*.py")
        if "pytest.mark.ray" in path.read_text(encoding="utf-8")
    }

    class SweepsInOne(LoadScopeScheduling):  # type: ignore[misc,unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if file in by_ray else file

    config.option.loadscopereorder = False  # the sweeps take longest, and begin with a "b"
    return SweepsInOne(config, log)
