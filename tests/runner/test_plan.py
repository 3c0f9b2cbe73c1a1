"""The trials of a launch as they are listed, named and priced."""

import time
from pathlib import Path

import pytest

from gisgd_ray.config.space import SearchSpace, make_space
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import row_of
from gisgd_ray.runner import cli
from gisgd_ray.runner.cluster import Machine
from gisgd_ray.runner.estimate import Estimate
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.plan import SHOWN, Plan, make_plan, plan_lines
from gisgd_ray.runner.resources import Resources, SweepCost
from tests.support.journals import add_point

RATE, BATCH = "training.learning_rate", "training.batch_size"


def options(*argv: str) -> cli.Options:
    return cli.parse(argv, prog="sweep", description="")


def planned(panels: dict[str, SearchSpace], *argv: str) -> Plan:
    return make_plan(panels, options(*argv), "laptop")


def of_seeds(count: int) -> Plan:
    trials = [TrialConfig(seed=seed) for seed in range(count)]
    return Plan(trials, {t.trial_id: f"label {t.seed}" for t in trials}, ["seed"])


def note(folder: Path, config: TrialConfig, status: str) -> None:
    Journal(folder).add_row(config.trial_id, row_of(config, {"status": status}))


def lines_of(plan: Plan, location: Location, item: str) -> list[str]:
    return plan_lines(plan, plan.left(location.folder).waiting, str(location), item)


# ---------------------------------------------------------------- the trials and their labels


def test_one_panels_labels_are_the_fields_that_it_varies() -> None:
    plan = planned({"one": make_space({RATE: [0.1, 0.2], BATCH: 50}, seeds=2)})
    assert plan.swept == [RATE]
    assert plan.labels == {
        t.trial_id: f"learning_rate={t.training.learning_rate} seed={t.seed}" for t in plan.trials
    }
    assert len(plan.labels) == 4


def test_labels_tell_every_trial_of_several_panels_apart() -> None:
    plan = planned(
        {
            "narrow": make_space({"model.name": "mlp", "model.width": 16, RATE: [0.1, 0.2]}),
            "alexnet": make_space(
                {"model.name": "alexnet", "data.dataset": "cifar10", BATCH: [50, 100]}, seeds=2
            ),
        }
    )
    assert plan.swept == ["data.dataset", "model.name", RATE, BATCH]
    labels = list(plan.labels.values())
    assert labels[:2] == [
        "dataset=mnist5k model=mlp learning_rate=0.1 batch_size=60 seed=0",
        "dataset=mnist5k model=mlp learning_rate=0.2 batch_size=60 seed=0",
    ]
    assert set(labels[2:]) == {
        f"dataset=cifar10 model=alexnet learning_rate=0.01 batch_size={b} seed={s}"
        for b in (50, 100)
        for s in (0, 1)
    }
    assert len(set(labels)) == len(labels) == len(plan.trials) == 6


def test_labels_of_several_schemes_name_them_and_what_differs_within_one() -> None:
    panels: dict[str, SearchSpace] = {
        "sgd": make_space({"scheme.name": "sgd"}),
        "weak": make_space({"scheme.name": "gmp", "scheme.noise_std": 0.01, "scheme.draws": 2}),
        "strong": make_space({"scheme.name": "gmp", "scheme.noise_std": 0.1, "scheme.draws": 2}),
    }
    plan = planned(panels)
    assert plan.swept == ["data.dataset", "model.name", "scheme.name", "scheme.noise_std"]
    assert list(plan.labels.values()) == [
        "dataset=mnist5k model=mlp scheme=sgd seed=0",
        "dataset=mnist5k model=mlp scheme=gmp noise_std=0.01 seed=0",
        "dataset=mnist5k model=mlp scheme=gmp noise_std=0.1 seed=0",
    ]


def test_a_trial_of_two_panels_is_run_once() -> None:
    panels = {"first": make_space({RATE: [0.1, 0.2]}), "second": make_space({RATE: [0.2, 0.4]})}
    plan = planned(panels)
    assert [t.training.learning_rate for t in plan.trials] == [0.1, 0.2, 0.4]
    assert len(plan.labels) == 3


def test_the_command_line_changes_the_plan() -> None:
    plan = planned({"one": make_space({RATE: [0.1, 0.2]})}, f"--{BATCH}=20,40", "--seeds=2")
    assert plan.swept == [RATE, BATCH]
    assert len(plan.trials) == 8
    assert "learning_rate=0.2 batch_size=40 seed=1" in plan.labels.values()


def test_every_trial_is_checked_and_the_first_fault_told() -> None:
    seen: list[float] = []

    def check(config: TrialConfig) -> None:
        seen.append(config.training.learning_rate)
        if config.training.learning_rate > 0.15:
            raise UserError("too fast")

    panels = {"one": make_space({RATE: [0.1, 0.2, 0.3]})}
    with pytest.raises(UserError, match="too fast"):
        make_plan(panels, options(), "laptop", check=check)
    assert seen == [0.1, 0.2]


# ---------------------------------------------------------------- the list


def test_the_list_says_what_is_finished_and_what_is_not(tmp_path: Path) -> None:
    plan = of_seeds(5)
    for config, status in zip(plan.trials, ("finished", "diverged", "failed"), strict=False):
        note(tmp_path, config, status)
    add_point(Journal(tmp_path), plan.trials[3].trial_id, {"step": 0})  # broken off
    *lines, last = lines_of(plan, Location(tmp_path, str(tmp_path)), "Figure 0")
    states = ["finished", "finished", "to run  ", "to run  ", "to run  "]
    assert lines == [
        f"{config.trial_id}  {state}  label {config.seed}"
        for config, state in zip(plan.trials, states, strict=True)
    ]
    assert last == f"Figure 0: 5 trials, 3 to run, results in {tmp_path}"


def test_listing_makes_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    assert lines_of(of_seeds(1), Location(folder, str(folder)), "It")[-1].endswith(str(folder))
    assert not folder.exists()


@pytest.mark.parametrize("count", [0, 1, SHOWN - 1, SHOWN])
def test_a_list_that_is_short_enough_is_whole(count: int, tmp_path: Path) -> None:
    lines = lines_of(of_seeds(count), Location(tmp_path, str(tmp_path)), "It")
    assert [line.split()[-1] for line in lines[:-1]] == [str(i) for i in range(count)]


def test_what_is_left_is_looked_up_here_and_where_trials_are_taken_from(tmp_path: Path) -> None:
    plan = of_seeds(4)
    here, other, same = (tmp_path / name for name in ("here", "other", "same"))
    for folder, seed, status in (
        (here, 0, "finished"),
        (here, 2, "failed"),
        (other, 0, "finished"),
        (other, 1, "diverged"),
        (same, 0, "finished"),
    ):
        note(folder, plan.trials[seed], status)
    left = plan.left(here, [other, same])
    assert [trial.seed for trial in left.waiting] == [2, 3]
    assert [trial.seed for trial in left.done] == [0, 1]
    assert left.own == {plan.trials[0].trial_id}
    assert left.taken_from == [other]


@pytest.mark.parametrize("count", [SHOWN + 1, 999])
def test_a_long_list_is_cut_in_its_middle(count: int, tmp_path: Path) -> None:
    plan = of_seeds(count)
    note(tmp_path, plan.trials[SHOWN // 2], "finished")  # counts though it is not shown
    lines = lines_of(plan, Location(tmp_path, str(tmp_path)), "It")
    half = SHOWN // 2
    assert lines[half] == f"... {count - SHOWN} more ..."
    shown = [line.split()[-1] for line in lines[:half] + lines[half + 1 : -1]]
    assert shown == [str(i) for i in (*range(half), *range(count - half, count))]
    assert lines[-1] == f"It: {count} trials, {count - 1} to run, results in {tmp_path}"


# ---------------------------------------------------------------- the cost


def test_the_cost_in_words() -> None:
    found = Estimate(low_s=600.0, high_s=2000.0, trials=1200, points=45_000, tried=6)
    resources = Resources(cpus=2, gpus=0.125)
    assert SweepCost(found, resources, [Machine(128, 8)], joined=True).lines() == [
        "Each takes 2 CPUs and 0.125 of a GPU; 64 at once on 8 GPUs.",
        f"Time: {found}.",
        "W&B: about 45,000 points in 1,200 runs, 22 a second.",
        "To stop a sweep: Ctrl-C once; --resume goes on later, from where each trial was.",
    ]


@pytest.mark.parametrize(
    ("points", "high_s", "words"),
    [
        (30, 600.0, "about 30 points in 5 runs, 0.05 a second."),
        (7, 0.5, "about 7 points in 5 runs, 7 a second."),
        (100_000, 80.0, "about 100,000 points in 5 runs, 1,250 a second."),
        (0, 600.0, "about 0 points in 5 runs."),
    ],
)
def test_the_points_a_second_are_words_for_people(points: int, high_s: float, words: str) -> None:
    found = Estimate(high_s, high_s, trials=5, points=points, tried=1)
    line = SweepCost(found, Resources(), [Machine(2, 0)], joined=False).lines()[2]
    assert line == f"W&B: {words}"


def test_nothing_left_costs_nothing() -> None:
    nothing = Estimate(0.0, 0.0, 0, 0, 0)
    lines = SweepCost(nothing, Resources(), [Machine(2, 0)], joined=True).lines()
    assert lines[:3] == [
        "Each takes 1 CPU; 2 at once on 2 CPUs.",
        "Time: nothing is left to run.",
        "W&B: about 0 points in 0 runs.",
    ]


def test_what_is_known_is_said_where_the_time_is_not() -> None:
    found = Estimate(0.0, 0.0, trials=33, points=0, tried=0, unknown="mnist is not here")
    assert SweepCost(found, Resources(), [Machine(2, 0)], joined=True).lines()[:3] == [
        "Each takes 1 CPU; 2 at once on 2 CPUs.",
        "Time: not known, since a dry run downloads nothing, and mnist is not here.",
        "W&B: 33 runs.",
    ]


# ---------------------------------------------------------------- how many there may be


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--seeds=1000000000"], r"these are 2,000,000,000 trials \(seeds 1,000,000,000 x .*2\)"),
        (
            [
                f"--{RATE}={','.join(map(str, range(1, 1001)))}",
                f"--{BATCH}={','.join(['2'] * 1000)}",
            ],
            rf"these are 1,000,000 trials \({RATE} 1,000 x {BATCH} 1,000\)",
        ),
        (
            [f"--{RATE}=uniform(0.1, 0.2)", "--samples=1000000000000"],
            r"these are 1,000,000,000,000 trials \(samples 1,000,000,000,000\)",
        ),
        ([f"--{BATCH}=20,40", "--seeds=25001"], r"these are 100,004 trials \(seeds 25,001 x"),
    ],
)
def test_too_many_are_counted_without_being_listed(argv: list[str], said: str) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match=said) as caught:
        planned({"one": make_space({RATE: [0.1, 0.2]})}, *argv)
    assert time.monotonic() - begun < 2
    assert "a sweep takes at most 100,000; choose fewer" in str(caught.value)


def test_the_panels_of_a_sweep_count_together() -> None:
    panels = {name: make_space({RATE: [0.1, 0.2]}, seeds=30_000) for name in ("one", "two")}
    with pytest.raises(UserError, match=r"these are 120,000 trials \(seeds 30,000 x"):
        planned(panels)


def test_planning_that_takes_a_while_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gisgd_ray.runner.plan.MANY", 3)
    planned({"one": make_space({RATE: 0.1}, seeds=3)})
    assert capsys.readouterr().err == ""
    planned({"one": make_space({RATE: 0.1}, seeds=4)})
    assert capsys.readouterr().err == "Planning 4 trials ...\n"
