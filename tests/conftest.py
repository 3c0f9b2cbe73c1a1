"""What all tests share: one torch thread, as in a trial, so that sums are taken in the same order
everywhere; one Ray for those that need one and no fault of it; one sweep that ran undisturbed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch and Ray are imported.
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch

if TYPE_CHECKING:
    from tests.support.shared_ray import Head

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Head"]:
    from tests.support.shared_ray import started

    with started(tmp_path_factory.mktemp("home")) as head:
        yield head


@pytest.fixture(scope="session")
def undisturbed(shared_ray: "Head", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished small sweep with W&B offline, to read."""
    from tests.support import launches

    out = tmp_path_factory.mktemp("undisturbed")
    said = launches.here(out, WANDB_MODE="offline", **shared_ray.environment)
    assert said.status == 0, said.err
    assert said.out.startswith("Scale laptop: asked for with --scale; ")
    assert launches.told_again(out / "lr_batch") == 0
    return out / "lr_batch"
