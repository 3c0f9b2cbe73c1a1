"""Grids, distributions and seeds become the expected trials; every fault is one clear sentence."""

import itertools
import math
import re
import time
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from gisgd_ray.config.catalogue import DATASETS, MODELS
from gisgd_ray.config.space import (
    Choice,
    LogUniform,
    SearchSpace,
    Uniform,
    field_paths,
    make_space,
    validated,
)
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.runner.launch import param_space
from gisgd_ray.runner.resources import Resources
from gisgd_ray.runner.settings import RunSettings
from gisgd_ray.tracking.run import WandbSettings
from sweeps import lr_batch

RATE, BATCH = "training.learning_rate", "training.batch_size"
MILESTONES, STDS = "training.lr_milestones", "measurement.noise_stds"
SCHEDULE = "measurement.hessian_schedule"


def column(space: SearchSpace, path: str) -> list[Any]:
    """One field of every trial, in the order of the trials."""
    return [trial.flat()[path] for trial in space.trials()]


def fault(fields: dict[str, Any], **settings: Any) -> str:
    """What is said of a space that is refused, when it is made or when it is expanded."""
    with pytest.raises(UserError) as caught:
        make_space(fields, **settings).trials()
    said = str(caught.value)
    assert "\n" not in said
    return said


def uniform(low: float, high: float) -> dict[str, Any]:
    return {"kind": "uniform", "low": low, "high": high}


def log_uniform(low: float, high: float) -> dict[str, Any]:
    return {"kind": "log_uniform", "low": low, "high": high}


def choice(*values: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": list(values)}


# ---------------------------------------------------------------- grids


def test_nothing_given_is_the_default_trial() -> None:
    assert SearchSpace().trials() == [TrialConfig()]
    assert SearchSpace().swept_fields() == []


def test_a_product_of_grids_last_field_fastest() -> None:
    space = SearchSpace(fields={RATE: [0.1, 0.2], "model.width": 64, BATCH: (20, 40, 60)})
    pairs = list(zip(column(space, RATE), column(space, BATCH), strict=True))
    assert pairs == list(itertools.product([0.1, 0.2], [20, 40, 60]))
    assert set(column(space, "model.width")) == {64}
    assert space.swept_fields() == [RATE, BATCH]


def test_seeds_are_innermost_and_start_at_seed() -> None:
    space = SearchSpace(fields={RATE: [0.1, 0.2], "seed": 5}, seeds=3)
    assert column(space, "seed") == [5, 6, 7] * 2
    assert column(space, RATE) == [0.1] * 3 + [0.2] * 3
    assert space.swept_fields() == [RATE]
    assert column(SearchSpace(fields={"seed": [3, 9]}), "seed") == [3, 9]
    default = column(SearchSpace(seeds=2), "seed")
    assert default == [0, 1]


def test_the_same_space_gives_the_same_trials_every_time() -> None:
    fields = {RATE: log_uniform(1e-3, 1), BATCH: [20, 40]}
    one, two = (make_space(fields, samples=5, seeds=2) for _ in range(2))
    assert [t.trial_id for t in one.trials()] == [t.trial_id for t in two.trials()]
    assert len(one.trials()) == 5 * 2 * 2


def test_trials_that_are_the_same_count_once() -> None:
    assert column(SearchSpace(fields={RATE: [1, 1.0, 2, "1"]}), RATE) == [1, 2]
    overlap = SearchSpace(fields={BATCH: [20, 20.0, "20"]}, seeds=2)
    assert column(overlap, "seed") == [0, 1]
    # Two batch sizes, whatever was drawn; the draws are no product with themselves.
    assert len(make_space({BATCH: choice(20, 40)}, samples=200).trials()) == 2


def test_a_list_is_one_value_of_a_field_that_takes_lists() -> None:
    for path, values in ((MILESTONES, [10, 20]), (STDS, [0.1, 0.2])):
        assert column(SearchSpace(fields={path: values}), path) == [values]
        assert column(SearchSpace(fields={path: tuple(values)}), path) == [values]
        assert SearchSpace(fields={path: values}).swept_fields() == []
        grid = SearchSpace(fields={path: [values, values[:1]]})
        assert column(grid, path) == [values, values[:1]]
        assert grid.swept_fields() == [path]
    assert column(SearchSpace(fields={MILESTONES: []}), MILESTONES) == [[]]
    assert column(SearchSpace(fields={MILESTONES: [[], [5]]}), MILESTONES) == [[], [5]]


def test_swept_fields_take_several_values() -> None:
    fields = {RATE: [0.1, 0.1], BATCH: [20], "model.width": [8, 9], "data.label_noise": 0.1}
    assert SearchSpace(fields=fields).swept_fields() == ["model.width"]
    assert make_space({RATE: uniform(1, 2)}).swept_fields() == [RATE]


def test_an_optional_section_is_null_or_its_fields() -> None:
    (null,) = SearchSpace(fields={SCHEDULE: None}).trials()
    assert null.measurement.hessian_schedule is None
    (whole,) = SearchSpace(fields={SCHEDULE: {"every": 3}}).trials()
    (inside,) = SearchSpace(fields={f"{SCHEDULE}.every": 3}).trials()
    assert whole == inside != null
    both = SearchSpace(fields={SCHEDULE: [None, {"every": 3}]})
    assert both.trials() == [null, whole]
    assert both.swept_fields() == [SCHEDULE]


def test_ten_thousand_trials_expand_in_seconds() -> None:
    begun = time.perf_counter()
    space = make_space({BATCH: list(range(2, 102)), "measurement.dispersion": False}, seeds=100)
    assert len(space.trials()) == 10_000
    assert time.perf_counter() - begun < 30  # 2 s here, and no more by the square of their number


# ---------------------------------------------------------------- distributions

DRAWS = 400


@pytest.mark.parametrize(
    ("distribution", "transform", "ends"),
    [(uniform(0.5, 3), float, (0.5, 3.0)), (log_uniform(1e-4, 10), math.log10, (-4.0, 1.0))],
)
def test_draws_follow_their_law(distribution: dict[str, Any], transform: Any, ends: Any) -> None:
    """Kolmogorov-Smirnov at 1e-3; the other law is refused, so the test can tell them apart."""
    drawn = column(make_space({RATE: distribution}, samples=DRAWS), RATE)
    assert len(set(drawn)) == DRAWS
    assert distribution["low"] <= min(drawn)
    assert max(drawn) <= distribution["high"]
    law = stats.uniform(ends[0], ends[1] - ends[0])
    assert stats.kstest([transform(v) for v in drawn], law.cdf).pvalue > 1e-3
    other = math.exp if transform is float else float
    low, high = other(distribution["low"]), other(distribution["high"])
    wrong = stats.kstest([other(v) for v in drawn], stats.uniform(low, high - low).cdf)
    assert wrong.pvalue < 1e-6


def test_choices_are_equally_likely() -> None:
    space = make_space({BATCH: choice(20, 40, 60), RATE: uniform(0, 1)}, samples=DRAWS)
    counts = np.unique(column(space, BATCH), return_counts=True)
    assert list(counts[0]) == [20, 40, 60]
    assert stats.chisquare(counts[1]).pvalue > 1e-3


@pytest.mark.parametrize("path", ["training.max_epochs", "training.max_steps"])
def test_ranges_are_rounded_for_integer_fields(path: str) -> None:
    """Also for a field that may be null; each end has half a whole number's share."""
    other = {RATE: uniform(1, 2)}  # keeps trials apart
    drawn = column(make_space({path: uniform(1, 4), **other}, samples=DRAWS), path)
    assert {type(v) for v in drawn} == {int}
    shares = np.bincount(drawn, minlength=5)[1:] / DRAWS
    assert shares == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 6], abs=0.07)


def test_choices_are_taken_as_they_are() -> None:
    assert fault({BATCH: choice(20.5)}) == (
        "training.batch_size = 20.5: input should be a valid integer, "
        "got a number with a fractional part"
    )
    lists = make_space({MILESTONES: choice([5], [5, 9])}, samples=20)
    assert sorted(column(lists, MILESTONES)) == [[5], [5, 9]]
    assert column(make_space({"training.stop_loss": choice(None)}), "training.stop_loss") == [None]


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        (BATCH, (20, "abc", 30), "training.batch_size = 'abc': input should be a valid integer"),
        (BATCH, (20, "", 30), "training.batch_size = '': input should be a valid integer"),
        (BATCH, (20, 5000), "training.batch_size = 5000 exceeds the 4000 training samples"),
        (RATE, (0.1, 0.2, -1), "training.learning_rate = -1: input should be greater than 0"),
        (MILESTONES, ([5], [9, 5]), "training.lr_milestones = [9, 5] must be epochs from 1"),
        ("model.name", ("mlp", "mpl"), "model.name = 'mpl': expected one of 'mlp', "),
        (SCHEDULE, (None, {"every": 0}), "measurement.hessian_schedule.every = 0: input should"),
    ],
)
def test_every_value_of_a_choice_must_do_whatever_is_drawn(
    path: str, values: tuple[Any, ...], said: str
) -> None:
    for seed in range(8):  # one draw: at some seeds it is the bad one, at most it is not
        assert fault({path: choice(*values)}, sampling_seed=seed).startswith(said)


def test_a_draw_depends_on_its_own_field_alone() -> None:
    alone = column(make_space({RATE: uniform(0, 1)}, samples=4), RATE)
    assert len(set(alone)) == 4
    longer = column(make_space({RATE: uniform(0, 1)}, samples=9), RATE)
    assert longer[:4] == alone
    noise = {"data.label_noise": uniform(0, 1)}
    both = make_space({**noise, "model.width": 3, RATE: uniform(0, 1)}, samples=4)
    assert column(both, RATE) == alone
    assert column(both, "data.label_noise") != alone
    assert column(make_space({RATE: uniform(0, 2)}, samples=4), RATE) == [2 * v for v in alone]
    other = column(make_space({RATE: uniform(0, 1)}, samples=4, sampling_seed=1), RATE)
    assert not set(other) & set(alone)


def test_draws_are_shared_by_all_points_of_the_grids() -> None:
    space = make_space({RATE: uniform(0, 1), BATCH: [20, 40]}, samples=3)
    rates = column(space, RATE)
    assert rates[::2] == rates[1::2]
    assert column(space, BATCH) == [20, 40] * 3


def test_distributions_may_be_given_as_models() -> None:
    given = (Uniform(low=0, high=1), LogUniform(low=0.1, high=1), Choice(values=(0.1, 0.2)))
    for distribution in given:
        as_dict = distribution.model_dump()
        assert make_space({RATE: distribution}).trials() == make_space({RATE: as_dict}).trials()
        assert make_space({RATE: distribution}).swept_fields() == [RATE]


# ---------------------------------------------------------------- faults


FAULTS: dict[str, dict[str, Any]] = {
    "training.learning_rate = -1: input should be greater than 0": {RATE: -1},
    "training.learning_rate = 0: input should be greater than 0": {RATE: [0.1, 0]},
    "training.learning_rate = 'abc': input should be a valid number, "
    "unable to parse string as a number": {RATE: "abc"},
    "training.learning_rate = [] is an empty grid; give at least one value": {RATE: []},
    "training.batch_size = 20.5: input should be a valid integer, "
    "got a number with a fractional part": {BATCH: 20.5},
    f"data.dataset = 'mnsit': input should be {', '.join(map(repr, list(DATASETS)[:-1]))} "
    f"or {list(DATASETS)[-1]!r}": {"data.dataset": "mnsit"},
    "training.lr is not a field of a trial; did you mean training.loss?": {"training.lr": 0.1},
    "learning_rate is not a field of a trial; did you mean training.learning_rate?": {
        "learning_rate": 0.1
    },
    "model is a section of a trial, not a field; it has name, width, filters, hidden": {
        "model": "mlp"
    },
    "model.width = 512: model 'alexnet' has no field 'width'; it has name, filters, hidden": {
        "model.name": "alexnet",
        "model.width": 512,
    },
    "model.filters = 3: model 'mlp' has no field 'filters'; it has name, width": {
        "model.filters": 3
    },
    "model.width = 3: model 'linear' has no field 'width'; it has name": {
        "model.name": "linear",
        "model.width": 3,
    },
    "scheme.level = 0.1: scheme 'sgd' has no field 'level'; it has name": {"scheme.level": 0.1},
    f"model.name = 'mpl': expected one of {', '.join(map(repr, MODELS))}": {"model.name": "mpl"},
    f"model.name = None: expected one of {', '.join(map(repr, MODELS))}": {"model.name": None},
    "training.lr_milestones = [20, 10] must be epochs from 1, ascending": {MILESTONES: [20, 10]},
    "measurement.noise_stds = [0.1, -1.0] has -1; a noise std must be above 0": {STDS: [0.1, -1]},
    "training.nesterov = true needs training.momentum > 0, but it is 0": {
        "training.nesterov": True
    },
    "model.width = 0: input should be greater than or equal to 1; "
    "training.learning_rate = 0: input should be greater than 0": {"model.width": 0, RATE: 0},
    "measurement.hessian_schedule = 2: expected null; set measurement.hessian_schedule.every "
    "instead": {SCHEDULE: 2},
    "measurement.hessian_schedule and measurement.hessian_schedule.every exclude each other; "
    "give one of them": {SCHEDULE: None, f"{SCHEDULE}.every": 2},
    "training.learning_rate: low = 2 must be below high = 1": {RATE: uniform(2, 1)},
    "training.learning_rate: low = 1 must be below high = 1": {RATE: log_uniform(1, 1)},
    "training.learning_rate: low = 0: input should be greater than 0": {RATE: log_uniform(0, 1)},
    "training.learning_rate: high = nan: input should be a finite number": {
        RATE: uniform(0, math.nan)
    },
    "training.learning_rate: high = inf: input should be a finite number": {
        RATE: uniform(0, math.inf)
    },
    "training.learning_rate: values = []: tuple should have at least 1 item after validation, "
    "not 0": {RATE: choice()},
    "training.learning_rate: uniform needs high": {RATE: {"kind": "uniform", "low": 1}},
    "training.learning_rate: kind = 'normal': expected one of 'uniform', 'log_uniform', 'choice'": {
        RATE: {"kind": "normal", "mean": 0}
    },
    "training.learning_rate: kind = None: expected one of 'uniform', 'log_uniform', 'choice'": {
        RATE: {"low": 0, "high": 1}
    },
    "training.learning_rate: weights = [1]: 'choice' has no field 'weights'; it has kind, values": {
        RATE: choice(0.1) | {"weights": [1]}
    },
    "training.max_epochs = 9223372036854775808: input should be less than 2**63": {
        "training.max_epochs": 2**63
    },
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.stop_loss", True),
        ("training.batch_size", True),
        ("training.momentum", False),
        ("training.evaluation.every", True),
        ("model.width", True),
        ("seed", False),
        ("replicas", True),
        (STDS, [0.1, True]),
        (MILESTONES, [True]),
        (RATE, choice(0.1, True)),
    ],
)
def test_true_and_false_are_no_numbers(path: str, value: Any) -> None:
    shown = True if isinstance(value, dict) else value
    for given in (value, np.array(value) if isinstance(value, bool) else value):
        assert (
            fault({path: given}) == f"{path} = {shown}: input should be a number, not true or false"
        )


def test_true_and_false_are_values_of_fields_that_take_them() -> None:
    for path in ("training.stop_at_full_accuracy", "measurement.flatness"):
        assert column(make_space({path: [True, False]}), path) == [True, False]


@pytest.mark.parametrize("said", FAULTS)
def test_a_fault_is_one_sentence_with_field_and_value(said: str) -> None:
    assert fault(FAULTS[said]) == said


@pytest.mark.parametrize(
    ("seed", "seeds", "said"),
    [
        (None, 2, "seed = None: input should be a valid integer"),
        (-1, 3, "seed = -1: input should be greater than or equal to 0"),
        ([0, 1], 2, "seeds = 2 and a grid of seed exclude each other"),
        ((0, 1), 2, "seeds = 2 and a grid of seed exclude each other"),
        (2**63 - 1, 2, f"seed = {2**63}: input should be less than 2**63"),
        (0, 0, "seeds = 0: input should be greater than or equal to 1"),
        (0, 1.5, "seeds = 1.5: input should be a valid integer, got a number with a fractional "
                 "part"),
    ],
)  # fmt: skip
def test_faults_of_seeds(seed: Any, seeds: Any, said: str) -> None:
    assert fault({"seed": seed}, seeds=seeds) == said


def test_faults_of_samples() -> None:
    assert fault({RATE: [0.1, 1]}, samples=3) == "samples = 3 needs a field with a distribution"
    assert fault({}, samples=0) == "samples = 0: input should be greater than or equal to 1"
    # Out of the field's bounds: told with the value drawn.
    drawn = fault({BATCH: uniform(-20, -10)})
    assert re.fullmatch(r"training\.batch_size = -1\d: input should be greater than or .* 1", drawn)


def test_an_unknown_field_without_a_near_one_lists_them_all() -> None:
    said = fault({"xyz": 1})
    assert said.startswith(
        "xyz is not a field of a trial; known: data.dataset, data.train_fraction"
    )
    assert all(path in said for path in field_paths())


def test_a_fault_in_the_middle_of_a_space_is_found_before_any_trial_runs() -> None:
    space = make_space({BATCH: [60, 1333, 20]})
    with pytest.raises(UserError, match=r"training\.batch_size = 1333 gives a last batch"):
        space.trials()


def test_a_space_is_frozen_and_closed() -> None:
    space = SearchSpace(fields={RATE: 0.1})
    with pytest.raises(ValidationError, match="frozen"):
        space.seeds = 3  # type: ignore[misc]
    with pytest.raises(UserError, match=r"repeats = 3: .* has no field 'repeats'"):
        make_space({}, repeats=3)


# ---------------------------------------------------------------- what is made of a space


def test_ray_is_given_the_trials_as_one_grid() -> None:
    from ray.tune.search.variant_generator import generate_variants

    trials = make_space({RATE: [0.1, 0.2], MILESTONES: [[5], []]}, seeds=2).trials()
    wandb = WandbSettings("online", "f", "0123456789ab", group="g", project="p")
    run = RunSettings(Resources(cpus=2), "name", 60.0, wandb)
    space = param_space([[trials[0]], trials[1:]], run, {trials[1].trial_id: "the second"})
    assert RunSettings.of(space["run"]) == run
    assert type(space) is dict
    dumps = [trial.model_dump(mode="json") for trial in trials]
    names = [trials[0].trial_id, "the second", *(t.trial_id for t in trials[2:])]
    each = [{"config": c, "name": n} for c, n in zip(dumps, names, strict=True)]
    assert space == {"trials": {"grid_search": [each[:1], each[1:]]}, "run": run.plain()}
    expanded = [config for _, config in generate_variants(space)]
    found = [each["config"] for c in expanded for each in c["trials"]]
    assert [TrialConfig.model_validate(each) for each in found] == trials
    assert all(c["run"] == space["run"] for c in expanded)


def test_validated_takes_dotted_paths() -> None:
    config = validated({"model.width": 3, "scheme.name": "flooding", "scheme.level": 1})
    assert config.flat()["scheme.level"] == 1
    assert validated(config.flat()) == config
    assert validated({}) == TrialConfig()


def test_figure_6_at_laptop_scale() -> None:
    (space,) = lr_batch.LAPTOP.values()
    trials = space.trials()
    rates, batches = set(column(space, RATE)), set(column(space, BATCH))
    assert len(rates) >= 3
    assert len(batches) >= 4
    assert len(trials) == len(rates) * len(batches) * space.seeds
    assert space.seeds >= 3  # with one the claims would be no test
    assert {t.data.dataset for t in trials} == {"mnist5k"}
    assert all(t.outside_theorem() is None for t in trials)
    assert all(4000 % b != 1 for b in batches)


def test_figure_6_at_paper_scale() -> None:
    """The grids of PAPER.md, section 5 and appendix E.3."""
    mlp, alexnet = lr_batch.PAPER["mlp_mnist"], lr_batch.PAPER["alexnet_cifar10"]
    assert list(lr_batch.PAPER) == ["mlp_mnist", "alexnet_cifar10"]
    for space, rates, batches, size in (
        (mlp, [0.001, 0.005, 0.01], [20, 40, 60, 80, 100, 120], {"name": "mlp", "width": 512}),
        (alexnet, [0.0005, 0.001, 0.005], [50, 100, 150, 200, 250], {"name": "alexnet",
                                                                     "filters": 64,
                                                                     "hidden": 4096}),
    ):  # fmt: skip
        trials = space.trials()
        assert space.swept_fields() == [RATE, BATCH]
        assert len(trials) == len(rates) * len(batches)
        assert sorted(set(column(space, RATE))) == rates
        assert sorted(set(column(space, BATCH))) == batches
        assert all(t.model.model_dump() == size for t in trials)
        assert all(t.training.stop_loss == 1e-4 for t in trials)
        assert all(t.outside_theorem() is None for t in trials)
    assert {t.data.dataset for t in mlp.trials()} == {"mnist"}
    assert {t.data.dataset for t in alexnet.trials()} == {"cifar10"}
