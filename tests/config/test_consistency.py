"""Fields that contradict one another: the sentence a user reads, the nearest accepted neighbour."""

from typing import Any

import pytest

from gisgd_ray.config.catalogue import DATASETS, MODELS
from gisgd_ray.config.checks import num_train_samples
from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.frozen import Schedule
from gisgd_ray.config.space import SearchSpace, validated
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.runner import cli

TEACHER = {"data.dataset": "teacher", "training.loss": "squared"}
LINEAR = {"model.name": "linear", **TEACHER}
RELU = {"model.name": "two_layer_relu", **TEACHER}
CLASSES = [name for name in DATASETS if name != "teacher"]
BIGGEST = 2**63 - 1


def said(fields: dict[str, Any]) -> str:
    """What a user is told of fields that are refused."""
    with pytest.raises(UserError) as caught:
        validated(fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said_of_options(*argv: str) -> str:
    """What a user is told of options that are refused, at the latest before any trial starts."""

    def trials() -> list[TrialConfig]:
        options = cli.parse(argv, prog="sweep", description="A sweep.")
        return cli.apply({"a": SearchSpace()}, options, scale="laptop")["a"].trials()

    with pytest.raises(UserError) as caught:
        trials()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_batch_holds_at_most_all_samples(dataset: str) -> None:
    n = DATASETS[dataset].train
    fields = {"data.dataset": dataset, "training.loss": "squared"}
    assert validated({**fields, "training.batch_size": n}).training.batch_size == n
    assert said({**fields, "training.batch_size": n + 1}) == (
        f"training.batch_size = {n + 1} exceeds the {n} training samples of data.dataset = "
        f"{dataset!r} at data.train_fraction = 1; choose at most {n}"
    )


def test_the_train_fraction_counts() -> None:
    assert num_train_samples(DataConfig(train_fraction=0.5)) == 2000
    assert num_train_samples(DataConfig(train_fraction=0.0003)) == 1  # never an empty set
    assert validated({"data.train_fraction": 0.5, "training.batch_size": 2000})
    assert said({"data.train_fraction": 0.5, "training.batch_size": 2001}) == (
        "training.batch_size = 2001 exceeds the 2000 training samples of data.dataset = 'mnist5k' "
        "at data.train_fraction = 0.5; choose at most 2000"
    )


def test_the_trace_is_over_at_most_all_samples() -> None:
    half = {"data.train_fraction": 0.5}
    assert validated({**half, "measurement.hessian_samples": 2000})
    assert said({**half, "measurement.hessian_samples": 2001}) == (
        "measurement.hessian_samples = 2001 exceeds the 2000 training samples; choose at most "
        "2000, or null for all"
    )


def test_a_last_batch_of_one_has_no_dispersion() -> None:
    ragged = {"training.batch_size": 1333}  # 4000 = 3 * 1333 + 1
    assert said(ragged) == (
        "training.batch_size = 1333 gives a last batch (n = 4000) of a single sample, whose "
        "dispersion is undefined; choose another batch size, training.last_batch = 'drop' or "
        "measurement.dispersion = false"
    )
    assert validated({**ragged, "training.last_batch": "drop"})
    assert validated({**ragged, "measurement.dispersion": False})
    assert validated({"training.batch_size": 1332})  # the last one holds 4
    assert validated({"training.batch_size": 3999, "training.last_batch": "drop"})
    assert "3999" in said({"training.batch_size": 3999})


@pytest.mark.parametrize("last_batch", ["keep", "drop"])
def test_batches_of_one_have_no_dispersion(last_batch: str) -> None:
    single = {"training.batch_size": 1, "training.last_batch": last_batch}
    assert said(single) == (
        "training.batch_size = 1 gives batches of a single sample, whose dispersion is undefined; "
        "choose at least 2, or measurement.dispersion = false"
    )
    assert validated({**single, "measurement.dispersion": False})


def test_nesterov_needs_momentum() -> None:
    assert said({"training.nesterov": True}) == (
        "training.nesterov = true needs training.momentum > 0, but it is 0"
    )
    assert validated({"training.nesterov": True, "training.momentum": 0.9})


def test_milestones_ascend() -> None:
    assert said({"training.lr_milestones": [20, 10]}) == (
        "training.lr_milestones = [20, 10] must be epochs from 1, ascending"
    )
    assert validated({"training.lr_milestones": [10, 20]})


# ---------------------------------------------------------------- schedules


def fires(every: int, unit: str, *, until: int, steps_per_epoch: int = 7) -> list[int]:
    schedule = Schedule.model_validate({"every": every, "unit": unit})
    return [step for step in range(until + 1) if schedule.is_due(step, steps_per_epoch)]


@pytest.mark.parametrize("unit", ["epoch", "step", "log"])
@pytest.mark.parametrize("every", [1, 2, 3, 10, BIGGEST])
def test_the_next_is_the_first_that_fires(every: int, unit: str) -> None:
    schedule = Schedule.model_validate({"every": every, "unit": unit})
    found = [0]
    while found[-1] < 150:
        found.append(schedule.next(found[-1], 7))
    assert [step for step in found if step <= 150] == fires(every, unit, until=150)
    fired = found[1:]
    for step in range(150):
        assert schedule.next(step, 7) == min(s for s in fired if s > step)


def test_every_so_many_steps_or_epochs() -> None:
    assert fires(1, "step", until=4) == [0, 1, 2, 3, 4]
    assert fires(3, "step", until=10) == [0, 3, 6, 9]
    assert fires(1, "epoch", until=22) == [0, 7, 14, 21]
    assert fires(2, "epoch", until=42) == [0, 14, 28, 42]


def test_log_spaced() -> None:
    """Rounded powers of 10^(1/every), so many in every factor of ten, from step 1."""
    assert fires(1, "log", until=20_000) == [0, 1, 10, 100, 1000, 10_000]
    assert fires(2, "log", until=3200) == [0, 1, 3, 10, 32, 100, 316, 1000, 3162]
    # The first of ten points in a decade fall together: 1, 1.26; 1.58, 2.
    first = [0, 1, 2, 3, 4, 5, 6, 8, 10]
    decade = [13, 16, 20, 25, 32, 40, 50, 63, 79, 100]
    assert fires(10, "log", until=130) == [*first, *decade, 126]
    assert fires(BIGGEST, "log", until=300) == list(range(301))


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7, 20, 50, 100, 333])
def test_log_spaced_by_brute_force(every: int) -> None:
    points = {round(10 ** (j / every)) for j in range(4 * every)}
    until = 9000
    assert fires(every, "log", until=until) == [0, *sorted(p for p in points if p <= until)]
    # What an epoch is does not matter.
    assert fires(every, "log", until=99, steps_per_epoch=1) == fires(every, "log", until=99)


@pytest.mark.parametrize("unit", ["epoch", "step", "log"])
@pytest.mark.parametrize("every", [1, 3, 11])
def test_the_first_point_after_the_start_is_at_its_period(every: int, unit: str) -> None:
    schedule = Schedule.model_validate({"every": every, "unit": unit})
    assert fires(every, unit, until=200)[:2] == [0, schedule.period(7)]


# ---------------------------------------------------------------- schedules that never fire

# mnist5k in batches of 60: 67 steps in an epoch, 66 without the last batch.
DROPPED = {"training.max_epochs": 3, "training.last_batch": "drop"}
NEVER: list[tuple[str, int, dict[str, Any], str, str]] = [
    ("epoch", 500, {}, "33,567", "33,500"),
    ("epoch", 3, {"training.max_epochs": 3}, "268", "201"),
    ("epoch", 2, {"training.max_steps": 200}, "201", "200"),
    ("epoch", 3, {"training.max_steps": 201}, "268", "201"),
    ("epoch", 2, {**DROPPED, "training.max_steps": 132}, "198", "132"),
    ("step", 200, {"training.max_steps": 200}, "201", "200"),
    ("step", 201, {"training.max_epochs": 3}, "202", "201"),
    ("step", 198, DROPPED, "199", "198"),
    ("step", 201, {"training.max_epochs": 3, "training.max_steps": BIGGEST}, "202", "201"),
]


@pytest.mark.parametrize(("unit", "limit", "fields", "first", "last"), NEVER)
@pytest.mark.parametrize("name", ["hessian_schedule", "sensitivity_schedule"])
def test_a_schedule_fires_within_the_limit(
    name: str, unit: str, limit: int, fields: dict[str, Any], first: str, last: str
) -> None:
    """The remedy named is the largest value accepted."""
    path = f"measurement.{name}"
    fields = {**fields, "measurement.sensitivity": True, f"{path}.unit": unit}
    assert validated({**fields, f"{path}.every": limit})
    assert said({**fields, f"{path}.every": limit + 1}) == (
        f"{path}.every = {limit + 1} {unit}(s) never fires during training: its first point "
        f"would be step {first}, and the last step is {last}; choose {path}.every = {limit} or less"
    )


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", ["hessian_schedule", "sensitivity_schedule"])
def test_no_epoch_within_the_limit(name: str, every: int) -> None:
    path = f"measurement.{name}"
    fields = {
        "measurement.sensitivity": True,
        "measurement.sensitivity_schedule.unit": "step",
        "training.max_steps": 66,
        f"{path}.every": every,
    }
    assert said({**fields, f"{path}.unit": "epoch"}) == (
        f"{path}.every = {every} epoch(s) never fires during training: its first point would be "
        f"step {67 * every}, and the last step is 66; choose {path}.unit = 'step' "
        "with .every = 66 or less"
    )
    for unit in ("step", "log"):
        assert validated({**fields, f"{path}.unit": unit})


def test_the_sensitivity_schedule_counts_only_where_psi_is_measured() -> None:
    rare = {"measurement.sensitivity_schedule.every": 501}
    assert validated(rare)
    assert said({**rare, "measurement.sensitivity": True}).startswith(
        "measurement.sensitivity_schedule.every = 501 epoch(s) never fires during training"
    )


@pytest.mark.parametrize("every", [1, BIGGEST])
def test_log_spaced_points_begin_at_step_1(every: int) -> None:
    path = "measurement.hessian_schedule"
    assert validated({f"{path}.unit": "log", f"{path}.every": every, "training.max_steps": 1})


# ---------------------------------------------------------------- regression


@pytest.mark.parametrize("dataset", CLASSES)
@pytest.mark.parametrize("model", [name for name, known in MODELS.items() if known.theorem])
def test_networks_with_one_real_output_need_real_targets(model: str, dataset: str) -> None:
    assert said({"model.name": model, "data.dataset": dataset, "training.loss": "squared"}) == (
        f"model.name = {model!r} has one real output, but data.dataset = {dataset!r} has classes; "
        "choose data.dataset = 'teacher'"
    )
    assert validated({"model.name": model, **TEACHER})


def test_real_targets_need_the_squared_loss() -> None:
    assert said({**TEACHER, "training.loss": "cross_entropy"}) == (
        "data.dataset = 'teacher' has real targets: training.loss = 'cross_entropy' does not "
        "apply; choose 'squared'"
    )
    assert said({"data.dataset": "teacher"}) == said({**TEACHER, "training.loss": "cross_entropy"})
    assert validated(TEACHER)


def test_networks_for_vectors() -> None:
    for model in ("linear", "two_layer_relu", "mlp"):
        assert validated({**TEACHER, "model.name": model})


def test_real_targets_have_no_label_noise_and_no_accuracy() -> None:
    for path, value in (("data.label_noise", 1e-9), ("training.stop_at_full_accuracy", True)):
        told = said({**TEACHER, path: value})
        assert path.rpartition(".")[2] in told
        assert "needs classes, and data.dataset = 'teacher' has real targets" in told
    assert validated({**TEACHER, "data.label_noise": 0, "training.stop_at_full_accuracy": False})
    assert validated({**TEACHER, "training.stop_at_full_accuracy": None})


@pytest.mark.parametrize(
    ("theorem", "own", "model"),
    [
        ("theorem3", "linear", "mlp"),
        ("theorem3", "linear", "alexnet"),
        ("theorem3", "linear", "two_layer_relu"),
        ("theorem4", "two_layer_relu", "mlp"),
        ("theorem4", "two_layer_relu", "linear"),
    ],
)
def test_a_theorem_of_another_network(theorem: str, own: str, model: str) -> None:
    asked = {"measurement.network_theorem": theorem, **TEACHER}
    assert said({**asked, "model.name": model}) == (
        f"measurement.network_theorem = {theorem!r} holds for model.name = {own!r}, not for "
        f"{model!r}; choose that model, or measurement.network_theorem = 'auto'"
    )
    assert validated({**asked, "model.name": own}).network_theorem == theorem
    if model != "alexnet":
        for neutral in ("auto", "off"):
            asked["measurement.network_theorem"] = neutral
            assert validated({**asked, "model.name": model}).network_theorem != theorem


# ---------------------------------------------------------------- replicas


@pytest.mark.parametrize("count", [1, 0, -1])
def test_one_run_is_no_stochastic_setting(count: int) -> None:
    told = (
        f"replicas = {count}: the stochastic setting needs at least 2; choose 2 or more, or null "
        "for one run in the deterministic setting"
    )
    assert said({"replicas": count}) == told
    assert said_of_options("--replicas", str(count)) == told
    assert validated({"replicas": 2}).replicas == 2
    assert validated({"replicas": None}).replicas is None


def test_replicas_have_no_theorem_4() -> None:
    assert said({**RELU, "replicas": 2}) == (
        "replicas = 2: Theorem 4's activation counts are taken of one run; choose replicas = null, "
        "or measurement.network_theorem = 'off'"
    )
    assert validated(RELU).network_theorem == "theorem4"
    assert validated({**RELU, "replicas": 2, "measurement.network_theorem": "off"})
    assert validated({**LINEAR, "replicas": 2}).network_theorem == "theorem3"


# ---------------------------------------------------------------- noise and draws

STDS = "measurement.noise_stds"


@pytest.mark.parametrize(
    ("values", "text", "listed", "value"),
    [
        ([0], "0", "[0.0]", "0"),
        ([-1], "-1", "[-1.0]", "-1"),
        ([0.01, 0], "0.01,0", "[0.01, 0.0]", "0"),
        ([0.01, -1e-3], "0.01,-1e-3", "[0.01, -0.001]", "-0.001"),
    ],
)
def test_noise_without_spread(values: list[float], text: str, listed: str, value: str) -> None:
    told = f"{STDS} = {listed} has {value}; a noise std must be above 0"
    assert said({STDS: values}) == told
    assert said_of_options(f"--{STDS}", text) == told
    assert validated({STDS: [5e-324]})


@pytest.mark.parametrize("text", ["[]", "[[]]"])
def test_no_noise_at_all(text: str) -> None:
    """Neither an empty grid nor an empty value."""
    for told in (said({STDS: []}), said_of_options(f"--{STDS}", text)):
        assert told == f"{STDS} = [] is empty; give at least one noise std above 0, as in 1e-4"


@pytest.mark.parametrize("second", [0.01, 0.010000001])
def test_one_column_for_each_noise(second: float) -> None:
    """Columns are named by six digits of the std."""
    told = f"{STDS} = [0.01, 0.1, {second}] has 0.01 twice (to six digits); leave one out"
    assert said({STDS: [0.01, 0.1, second]}) == told
    assert said_of_options(f"--{STDS}", f"0.01,0.1,{second}") == told
    assert validated({STDS: [0.01, 0.0100001]})


@pytest.mark.parametrize(
    ("path", "bad", "wanted", "good"),
    [
        ("measurement.sensitivity_draws", 1, "greater than or equal to 2", 2),
        ("measurement.flatness_draws", 2, "greater than or equal to 4", 4),
        ("measurement.flatness_draws", 5, "a multiple of 2", 6),
    ],
)
def test_too_few_draws(path: str, bad: int, wanted: str, good: int) -> None:
    assert said({path: bad}) == f"{path} = {bad}: input should be {wanted}"
    assert said_of_options(f"--{path}", str(bad)) == f"{path} = {bad}: input should be {wanted}"
    assert validated({path: good}).flat()[path] == good


def test_the_default_trial_is_consistent() -> None:
    assert validated({}) == TrialConfig()
