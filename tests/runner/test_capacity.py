"""How many trials share what Ray has: GPUs are Ray's count of them alone, no CUDA is needed."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import DataError, UserError
from gisgd_ray.runner import cli, cluster, resources
from gisgd_ray.runner.cluster import run_on_a_gpu
from gisgd_ray.runner.estimate import Cost, Estimate
from gisgd_ray.runner.resources import (
    PROBED,
    Chosen,
    Probed,
    Resources,
    chosen_resources,
    sweep_cost,
)
from tests.support.runs import config

GB = 10**9
NAME = "NVIDIA A10G"
CPUS = 4
TRIALS = [config({"training.batch_size": size}) for size in (20, 40, 60, 80, 100)]


def options(*argv: str) -> cli.Options:
    return cli.parse(argv, prog="sweep", description="")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """A Ray of its own with four CPUs and a GPU, by its own count."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster._RAY_ENVIRONMENT.items():
            patch.setenv(name, os.environ.get(name, value))
        patch.delenv("RAY_ADDRESS", raising=False)
        import ray

        ray.init(
            address="local",
            num_cpus=CPUS,
            num_gpus=1,
            include_dashboard=False,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[TrialConfig]:
    """The trials that were tried out: 1 GB for each of a batch's first 20 samples, of 23 GB."""
    seen: list[TrialConfig] = []

    def measured(function: Any, *given: Any) -> Any:
        if function is resources._gpu_name:
            return NAME
        assert function is resources._probe
        seen.append(given[0])
        return Probed(given[0].training.batch_size // 20 * GB, 23 * GB, NAME)

    monkeypatch.setattr(resources, "run_on_a_gpu", measured)
    return seen


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Sets the machines of the cluster: CPUs and GPUs of each."""

    def machines(*sizes: tuple[float, float]) -> None:
        up = [{"Alive": True, "Resources": {"CPU": c, "GPU": g}} for c, g in sizes]
        total = {"CPU": sum(c for c, _ in sizes), "GPU": sum(g for _, g in sizes)}
        monkeypatch.setattr("ray.nodes", lambda: up)
        monkeypatch.setattr("ray.cluster_resources", lambda: total)
        monkeypatch.setattr(cluster, "BOOTSTRAP", tmp_path / "none")

    return machines


# ---------------------------------------------------------------- what each trial takes


def test_the_share_follows_from_the_largest_trial_and_the_machine(
    probed: list[TrialConfig], nodes: Callable[..., None]
) -> None:
    nodes((4, 1))
    chosen = chosen_resources(TRIALS, options())
    assert probed == resources.largest_trials(TRIALS)
    assert [t.training.batch_size for t in probed] == [100, 80, 60]
    # By memory 23 / (1.15 * 5) = 4, by CPUs 4.
    assert chosen.resources == Resources(cpus=1, gpus=0.25)
    assert str(chosen.why) == (
        "the largest takes 5.00 GB of a GPU's 23.0 GB (NVIDIA A10G, measured), and there are 4 "
        "CPUs to a GPU"
    )


def test_cpus_for_each_trial_leave_fewer_beside_one_another(
    probed: list[TrialConfig], nodes: Callable[..., None]
) -> None:
    nodes((4, 1))
    assert chosen_resources(TRIALS, options("--cpus-per-trial=2")).resources == Resources(2, 0.5)
    assert chosen_resources(TRIALS, options("--cpus-per-trial=3")).resources == Resources(3, 1.0)
    assert len(probed) == 2 * PROBED


def test_the_gpu_with_the_fewest_cpus_decides(
    probed: list[TrialConfig], nodes: Callable[..., None]
) -> None:
    nodes((64, 0), (64, 8), (6, 2))
    chosen = chosen_resources(TRIALS[:1], options())
    assert chosen.resources == Resources(cpus=1, gpus=0.3333)
    assert chosen.why is not None
    assert chosen.why.cpus_to_a_gpu == 3
    assert probed == TRIALS[:1]


def test_the_smallest_gpu_decides(
    monkeypatch: pytest.MonkeyPatch, nodes: Callable[..., None]
) -> None:
    sizes = iter([(5 * GB, 80 * GB), (6 * GB, 40 * GB), (4 * GB, 80 * GB)])
    monkeypatch.setattr(resources, "run_on_a_gpu", lambda *_: Probed(*next(sizes), NAME))
    nodes((64, 2))
    # The largest of the three by what was measured: 40 / (1.15 * 6) = 5.8.
    assert chosen_resources(TRIALS, options()).resources == Resources(gpus=0.2)


def test_a_trial_that_no_gpu_can_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch, nodes: Callable[..., None]
) -> None:
    nodes((4, 1))
    monkeypatch.setattr(resources, "run_on_a_gpu", lambda *_: Probed(30 * GB, 23 * GB, NAME))
    with pytest.raises(UserError, match=r"takes 30 GB of GPU memory, and the GPU has 23 GB"):
        chosen_resources(TRIALS, options())
    with pytest.raises(UserError, match=r"takes 30 GB of GPU memory, and the GPU has 23 GB"):
        sweep_cost(TRIALS, options(), connected=True)


@pytest.mark.parametrize("asked", [0.0, 0.1, 1.0, 2.0])
def test_what_the_user_asks_for_is_left_as_it_is(
    asked: float, probed: list[TrialConfig], nodes: Callable[..., None]
) -> None:
    nodes((4, 1))
    given = options(f"--gpus-per-trial={asked}", "--cpus-per-trial=2")
    assert chosen_resources(TRIALS, given) == Chosen(Resources(cpus=2, gpus=asked))
    assert probed == []


def test_without_a_gpu_none_is_asked_for(
    probed: list[TrialConfig], nodes: Callable[..., None]
) -> None:
    nodes((4, 0), (8, 0))
    assert chosen_resources(TRIALS, options("--cpus-per-trial=2")) == Chosen(Resources(cpus=2))
    assert probed == []


def test_nothing_left_to_run_is_not_tried_out(
    probed: list[TrialConfig], nodes: Callable[..., None]
) -> None:
    nodes((4, 1))
    assert chosen_resources([], options()) == Chosen(Resources())
    assert probed == []


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is there")
def test_a_gpu_that_only_ray_counts_is_told_in_a_sentence() -> None:
    for told, *asked in (
        (chosen_resources,),
        (partial(sweep_cost, connected=True), "--gpus-per-trial=0.5"),
    ):
        with pytest.raises(UserError) as caught:
            told(TRIALS, options(*asked))
        assert "can use no GPU on" in str(caught.value)
        assert str(caught.value).endswith("or run on CPUs with --gpus-per-trial 0")


# ---------------------------------------------------------------- a function on a GPU


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_a_function_runs_in_a_process_that_has_the_gpu() -> None:
    def where(first: int, second: int) -> tuple[int, int, list[str]]:
        import ray

        ids = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return first * second, os.getpid(), ids

    product, pid, gpus = run_on_a_gpu(where, 6, 7)
    assert product == 42
    assert len(gpus) == 1
    again = run_on_a_gpu(where, 1, 1)[1]
    assert len({pid, again, os.getpid()}) == 3  # a fresh one each time


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_what_a_user_is_told_on_a_gpu_comes_through() -> None:
    def refuse() -> None:
        raise DataError("there is no data")

    with pytest.raises(UserError) as caught:
        run_on_a_gpu(refuse)
    assert type(caught.value) is DataError
    assert str(caught.value) == "there is no data"


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_another_fault_on_a_gpu_comes_with_its_traceback() -> None:
    import ray

    def fail() -> None:
        raise ZeroDivisionError("by nought")

    with pytest.raises(ray.exceptions.RayTaskError, match="in fail") as caught:
        run_on_a_gpu(fail)
    assert isinstance(caught.value, ZeroDivisionError)


# ---------------------------------------------------------------- what it costs


def lines(*argv: str, connected: bool = True) -> list[str]:
    cost = sweep_cost(TRIALS, options(*argv), connected=connected)
    assert cost is not None
    return cost.lines()


FOUND = Estimate(low_s=60, high_s=60, trials=5, points=30, tried=3)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trials at once each estimate was for."""
    seen: list[int] = []

    def found(trials: Any, *, together: int, **_: Any) -> Estimate:
        assert trials == TRIALS
        seen.append(together)
        return FOUND

    monkeypatch.setattr(resources, "estimate", found)
    monkeypatch.setattr(resources, "usable_cpus", lambda: 6)
    return seen


@pytest.mark.parametrize(("cpus", "words", "at_once"), [(1, "1 CPU", 6), (4, "4 CPUs", 1)])
def test_the_cost_on_a_machine_without_ray(
    together: list[int], cpus: int, words: str, at_once: int
) -> None:
    assert lines(f"--cpus-per-trial={cpus}", connected=False) == [
        f"Each takes {words}; {at_once} at once on this machine (6 CPUs; its GPUs, if "
        "any, are found when Ray starts).",
        "Time: between 50 s and 72 s, by some seconds of 3 trials on this machine.",
        "W&B: about 30 points in 5 runs, 0.5 a second.",
        "To stop a sweep: Ctrl-C once; --resume goes on later, from where each trial was.",
    ]
    assert together == [at_once]


def test_a_trial_of_more_cpus_than_there_are_is_refused(together: list[int]) -> None:
    """As by a launch, and not tried out with so many threads."""
    with pytest.raises(UserError, match=r"asks for 64 CPUs .* no machine has them \(6 CPUs and 0"):
        lines("--cpus-per-trial=64", connected=False)
    assert together == []


@pytest.mark.usefixtures("probed")
@pytest.mark.parametrize(
    ("argv", "at_once", "words"),
    [
        ([], 8 * 3 + 2 * 3, "1 CPU and 0.3333 of a GPU"),  # by memory 4, by CPUs 3
        (["--gpus-per-trial=0.5"], 8 * 2 + 2 * 2, "1 CPU and 0.5 of a GPU"),
        (["--gpus-per-trial=2"], 4 + 1, "1 CPU and 2 of a GPU"),
        # As many as the CPUs are enough for, whatever the share is.
        (["--gpus-per-trial=0.01"], 64 + 6, "1 CPU and 0.01 of a GPU"),
        (["--gpus-per-trial=0.5", "--cpus-per-trial=6"], 10 + 1, "6 CPUs and 0.5 of a GPU"),
    ],
)
def test_the_trials_at_once_on_gpus(
    argv: list[str],
    at_once: int,
    words: str,
    together: list[int],
    nodes: Callable[..., None],
) -> None:
    nodes((128, 0), (64, 8), (6, 2))
    assert lines(*argv)[0] == f"Each takes {words}; {at_once} at once on 10 GPUs."
    assert together == [at_once]


def test_a_cluster_whose_gpus_are_not_up_yet_says_so(
    monkeypatch: pytest.MonkeyPatch, together: list[int], nodes: Callable[..., None]
) -> None:
    nodes((4, 0))
    monkeypatch.setattr(resources, "cluster_gpus", lambda: 8.0)
    assert sweep_cost(TRIALS, options(), connected=True) is None
    assert together == []


def test_on_gpus_trials_are_timed_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, nodes: Callable[..., None]
) -> None:
    asked = []

    def remote(function: Any, *given: Any) -> Any:
        asked.append((function, *given[1:]))
        if function is resources._probe:
            return Probed(5 * GB, 23 * GB, NAME)
        return Cost(start_s=0.0, step_s=1.0, point_s=0.0, steps=(10.0, 10.0))

    monkeypatch.setattr(resources, "run_on_a_gpu", remote)
    nodes((4, 1))
    told = lines()
    assert asked[:PROBED] == [(resources._probe, False)] * PROBED  # which downloads nothing
    assert asked[PROBED:] == [(resources._cost_on_a_gpu,)] * len(TRIALS)
    assert told[0].endswith("4 at once on 1 GPU.")
    # 50 s in fours, and the start.
    assert told[1].startswith("Time: between 17 s and 25 s")
