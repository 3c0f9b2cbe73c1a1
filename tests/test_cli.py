"""The command line of a sweep: its options, what they parse to, and what it says of bad input."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gisgd_ray import cli, sweep
from gisgd_ray.config import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.results import Journal, row_of
from gisgd_ray.search_space import SearchSpace, field_paths, make_space
from sweeps.lr_batch import SWEEP

RATE, BATCH = "training.learning_rate", "training.batch_size"


def options(*argv: str) -> cli.Options:
    return cli.parse(argv, prog="sweep", description="A sweep.")


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may start or join Ray."""

    def refuse(**_: Any) -> str:
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr(sweep, "connect", refuse)


@pytest.fixture
def dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs Figure 6's command line dry; gives the exit status, stdout and stderr."""

    def run(*argv: str, scale: str = "laptop") -> tuple[int, str, str]:
        given = [*argv, "--dry-run", "--scale", scale]
        status = sweep.main(SWEEP, [*given, *([] if "--out" in argv else ["--out", str(tmp_path)])])
        return status, *capsys.readouterr()

    return run


# ---------------------------------------------------------------- the options and their help


def shown_help(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        options("--help")
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_every_field_of_a_trial_is_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = re.findall(r"^  --(\S+) V\b", shown_help(capsys), flags=re.MULTILINE)
    assert named == list(field_paths())
    assert named[-1] == "seed"
    # There is no second list: a field that is added is an option by itself.
    assert not any(path in inspect.getsource(cli) for path in field_paths() if "." in path)
    more = field_paths() | {"data.new_one": field_paths()["data.dataset"]}
    monkeypatch.setattr(cli, "field_paths", lambda: more)
    monkeypatch.setattr(cli, "takes_lists", lambda path: False)  # noqa: ARG005
    assert options("--data.new_one", "3").overrides == {"data.new_one": 3}


def test_help_shows_descriptions_bounds_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    unwrapped = re.sub(r"\s+", "", text)
    for path, owners in field_paths().items():
        assert re.sub(r"\s+", "", str(owners[0][1].description)) in unwrapped, path
    for part in (
        "step size lambda_t before any schedule [> 0, default 0.01]",
        "[> 0, <= 1, default 1.0]",
        "of the SGD step; outside the theorem when not 0 [>= 0, < 1, default 0.0]",
        "[default mnist5k] (mnist5k, mnist, fashion_mnist, cifar10, cifar100, svhn)",
        "model family [mlp, alexnet]",
        "training scheme [sgd, flooding]",
        "Nesterov's form of the momentum [default false]",
        "stop at 100 % training accuracy; null: exactly when there is label noise [default null]",
        "[default []]",
        "[default [0.01, 0.0001, 1e-06]]",
        "(auto, exact, pyhessian, off)",
    ):
        assert re.sub(r"\s+", "", part) in unwrapped, part
    assert text.startswith("usage: sweep [options] [--FIELD V ...]\n")
    assert all(
        option in text for option in ("--scale", "--out", "--dry-run", "--resume", "--seeds")
    )


def test_nothing_given() -> None:
    plain = options()
    assert (plain.scale, plain.out, plain.panel) == ("auto", Path("results"), None)
    assert (plain.dry_run, plain.resume) == (False, False)
    assert (plain.cpus_per_trial, plain.gpus_per_trial) == (1, None)
    assert (plain.settings, plain.overrides) == ({}, {})


def test_settings() -> None:
    given = options("--seeds", "3", "--samples=4", "--sampling-seed", "5", "--panel", "a")
    assert given.settings == {"seeds": 3, "samples": 4, "sampling_seed": 5}
    assert given.panel == "a"
    assert options("--gpus-per-trial", ".5").gpus_per_trial == 0.5


# ---------------------------------------------------------------- what a field's text means


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("1e-3", 1e-3),
        ("-1e-3", -1e-3),
        ("20", 20),
        (" 20 ", 20),
        ("abc", "abc"),
        ("true", True),
        ("false", False),
        ("null", None),
        ('"0.1"', "0.1"),
        (".5", ".5"),  # no JSON: pydantic reads it
        ("", ""),
        ("0.1,0.2", [0.1, 0.2]),
        (" 0.1 , 0.2 ", [0.1, 0.2]),
        ("0.1,", [0.1]),
        (",", []),
        ("-1,2", [-1, 2]),
        ("1e-3,null,keep", [1e-3, None, "keep"]),
        ("[0.1, 0.2]", [0.1, 0.2]),
        (" [0.1, 0.2]", [0.1, 0.2]),
        ("[]", []),
        ('{"every": 2}', {"every": 2}),
        ("uniform(0,1)", {"kind": "uniform", "low": 0, "high": 1}),
        (" uniform ( -1 , 1e-3 ) ", {"kind": "uniform", "low": -1, "high": 1e-3}),
        ("log_uniform(1e-4, 1e-1)", {"kind": "log_uniform", "low": 1e-4, "high": 0.1}),
        ("loguniform(1e-4,1e-1)", {"kind": "log_uniform", "low": 1e-4, "high": 0.1}),
        ("choice(32, 64)", {"kind": "choice", "values": [32, 64]}),
        ("choice(mlp, alexnet)", {"kind": "choice", "values": ["mlp", "alexnet"]}),
        ("choice(null,1e-3,true)", {"kind": "choice", "values": [None, 1e-3, True]}),
        ("choice([5], [5, 9])", {"kind": "choice", "values": [[5], [5, 9]]}),
    ],
)
def test_a_value(text: str, value: Any) -> None:
    parsed = cli.parse_values(RATE, text)
    assert parsed == value
    assert type(parsed) is type(value)
    for argv in ([f"--{RATE}", text], [f"--{RATE}={text}"]):
        assert options(*argv).overrides == {RATE: value}


def test_one_number_is_a_list_where_the_field_takes_lists() -> None:
    path = "training.lr_milestones"
    for text, value in (("10", [10]), ("10,20", [10, 20]), ("[[5],[5,9]]", [[5], [5, 9]])):
        assert options(f"--{path}", text).overrides == {path: value}
    path = "measurement.noise_stds"
    assert options(f"--{path}", "1e-3").overrides == {path: [1e-3]}


MEANS_NOTHING = {
    "[0.1, 0.2": "not valid JSON (Expecting ',' delimiter)",
    "{each: 2}": "not valid JSON (Expecting property name enclosed in double quotes)",
    "uniform(1)": "uniform takes two numbers, low and high",
    "choice()": "choice takes at least one value",
    "normal(0,1)": "expected a value, a grid like 0.1,0.2 or one of uniform(a,b), "
    "log_uniform(a,b), choice(a,b,...)",
    "uniform(0,1": "expected a value, a grid like 0.1,0.2 or one of uniform(a,b), "
    "log_uniform(a,b), choice(a,b,...)",
}


@pytest.mark.parametrize("text", MEANS_NOTHING)
def test_text_that_means_nothing(text: str) -> None:
    with pytest.raises(UserError) as caught:
        options(f"--{RATE}", text)
    assert str(caught.value) == f"--{RATE} {text}: {MEANS_NOTHING[text]}"


# ---------------------------------------------------------------- which panels a field reaches

PANELS = {
    "wide": make_space({"model.name": "mlp", "model.width": 512, RATE: [0.1, 0.2]}, seeds=2),
    "deep": make_space({"model.name": "alexnet", "model.filters": 64, RATE: 0.1}),
    "plain": SearchSpace(),
}


def applied(*argv: str, panels: Any = PANELS) -> dict[str, SearchSpace]:
    return cli.apply(panels, options(*argv), scale="laptop")


def test_a_field_replaces_that_of_every_panel() -> None:
    assert applied() == PANELS
    spaces = applied(f"--{RATE}", "0.5", "--seeds", "3")
    assert [space.fields[RATE] for space in spaces.values()] == [0.5] * 3
    assert [space.seeds for space in spaces.values()] == [3] * 3
    assert [space.fields.get("model.width") for space in spaces.values()] == [512, None, None]
    assert PANELS["wide"].fields[RATE] == [0.1, 0.2]


def test_a_field_of_one_model_touches_only_its_panels() -> None:
    spaces = applied("--model.filters", "8", panels={k: PANELS[k] for k in ("wide", "deep")})
    assert spaces["wide"] == PANELS["wide"]
    assert spaces["deep"].fields["model.filters"] == 8
    assert applied("--model.width", "8")["plain"].trials()[0].model.model_dump()["width"] == 8


def test_another_model_drops_the_fields_of_the_old_one() -> None:
    spaces = applied("--model.name", "alexnet")
    assert spaces["wide"].fields == {RATE: [0.1, 0.2], "model.name": "alexnet"}
    assert spaces["plain"].fields == {"model.name": "alexnet"}
    resized = applied("--model.name", "alexnet", "--model.filters", "9")["wide"]
    assert resized.fields == spaces["wide"].fields | {"model.filters": 9}


def test_another_scheme_drops_the_fields_of_the_old_one() -> None:
    flooded = {"a": make_space({"scheme.name": "flooding", "scheme.level": 0.3, RATE: 0.1})}
    plain = applied("--scheme.name", "sgd", panels=flooded)["a"]
    assert plain.fields == {RATE: 0.1, "scheme.name": "sgd"}
    level = applied("--scheme.name", "flooding", "--scheme.level", "0.1,0.2")["plain"]
    assert [t.flat()["scheme.level"] for t in level.trials()] == [0.1, 0.2]


@pytest.mark.parametrize("names", ["mlp,alexnet", "choice(mlp, alexnet)", '["mlp", "alexnet"]'])
def test_several_models(names: str) -> None:
    panels = {"a": make_space({"model.name": "mlp", "model.width": 9})}
    draws = ("--samples", "9") if "choice" in names else ()
    trials = applied("--model.name", names, *draws, panels=panels)["a"].trials()
    assert sorted(t.model.name for t in trials) == ["alexnet", "mlp"]


def test_samples_reach_the_panels_with_a_distribution() -> None:
    filters = ("--model.filters", "choice(8, 16)")
    panels = {k: PANELS[k] for k in ("wide", "deep")}
    spaces = applied(*filters, "--samples", "5", panels=panels)
    assert (spaces["wide"].samples, spaces["deep"].samples) == (1, 5)
    drawn = {"a": make_space({RATE: {"kind": "uniform", "low": 0, "high": 1}}, samples=7)}
    assert applied(panels=drawn)["a"].samples == 7
    assert applied(f"--{RATE}", "0.1", panels=drawn)["a"].samples == 1
    with pytest.raises(UserError, match="samples = 5 needs a field with a distribution"):
        applied("--samples", "5")


def test_one_panel() -> None:
    assert list(applied("--panel", "deep")) == ["deep"]
    with pytest.raises(UserError) as caught:
        applied("--panel", "shallow")
    assert str(caught.value) == "--panel shallow: at scale laptop this sweep has wide, deep, plain"


FOREIGN = {
    "--model.name mlp --model.filters 3": "--model.filters: at scale laptop model.name is mlp, "
    "which has no field filters",
    "--scheme.name sgd --scheme.level 1": "--scheme.level: at scale laptop scheme.name is sgd, "
    "which has no field level",
}


@pytest.mark.parametrize("argv", FOREIGN)
def test_a_field_that_no_panel_has(argv: str) -> None:
    with pytest.raises(UserError) as caught:
        applied(*argv.split(" "))
    assert str(caught.value) == FOREIGN[argv]


# ---------------------------------------------------------------- the whole command


def test_dry_run_lists_the_trials(dry_run: Any, tmp_path: Path) -> None:
    status, out, err = dry_run(f"--{RATE}", "0.05,0.1", "--seeds", "2")
    *lines, total = out.splitlines()
    folder = tmp_path / "lr_batch"
    assert (status, err) == (0, "")
    assert total == f"Figure 6: 16 trials, 16 to run, results in {folder}"
    assert len(lines) == len({line.split()[0] for line in lines}) == 16
    assert lines[0].endswith("  to run    learning_rate=0.05 batch_size=20 seed=0")
    assert not folder.exists()


def test_dry_run_tells_what_is_finished(dry_run: Any, tmp_path: Path) -> None:
    argv = (f"--{RATE}", "0.05", f"--{BATCH}", "20,40,80")
    ids = [line.split()[0] for line in dry_run(*argv)[1].splitlines()[:-1]]
    journal = Journal(tmp_path / "lr_batch")
    for trial_id, trial_status in zip(ids, ("finished", "diverged", "failed"), strict=True):
        row = row_of(TrialConfig(), {"status": trial_status}) | {"trial_id": trial_id}
        journal.add_row(trial_id, row)
    *lines, total = dry_run(*argv)[1].splitlines()
    assert [line.split()[1] for line in lines] == ["finished", "finished", "to"]
    assert total.startswith("Figure 6: 3 trials, 1 to run, ")


BAD_INPUT = {
    f"--{RATE} -1": f"{RATE} = -1: input should be greater than 0",
    f"--{RATE}=-1": f"{RATE} = -1: input should be greater than 0",
    f"--{RATE} -1e-3": f"{RATE} = -0.001: input should be greater than 0",
    f"--{RATE} -.5": f"{RATE} = '-.5': input should be greater than 0",
    f"--{RATE} 0.1,-2": f"{RATE} = -2: input should be greater than 0",
    f"--{RATE} -1,2": f"{RATE} = -1: input should be greater than 0",
    f"--{RATE} -inf": f"{RATE} = '-inf': input should be a finite number",
    f"--{RATE} NaN": f"{RATE} = nan: input should be a finite number",
    f"--{RATE}=abc": f"{RATE} = 'abc': input should be a valid number, "
    "unable to parse string as a number",
    f"--{BATCH} 20.5": f"{BATCH} = 20.5: input should be a valid integer, "
    "got a number with a fractional part",
    f"--{BATCH} 5000": f"{BATCH} = 5000 exceeds the 4000 training samples of data.dataset = "
    "'mnist5k' at data.train_fraction = 1; choose at most 4000",
    "--seeds 0": "seeds = 0: input should be greater than or equal to 1",
    "--seeds -1": "seeds = -1: input should be greater than or equal to 1",
    "--seeds two": "--seeds: invalid int value: 'two'; --help lists every option",
    "--seed x --seeds 2": "seed = 'x': input should be a valid integer, "
    "unable to parse string as an integer",
    "--samples 3": "samples = 3 needs a field with a distribution",
    f"--{RATE}": f"--{RATE}: expected one argument; --help lists every option",
    f"--{RATE} 0.1 0.2": "'0.2' belongs to no option; a grid is one word, as in 0.1,0.2",
    "--learning_rate=1": f"--learning_rate is not an option; did you mean --{RATE}?",
    "--cpu-per-trial 2": "--cpu-per-trial is not an option; did you mean --cpus-per-trial?",
    "--xyz": "--xyz is not an option; --help lists every option",
    "--gpus-per-trial inf": "--gpus-per-trial: 'inf' is not a finite number; "
    "--help lists every option",
    "--gpus-per-trial half": "--gpus-per-trial: 'half' is not a finite number; "
    "--help lists every option",
    "--cpus-per-trial 0": "--cpus-per-trial = 0 must be at least 1",
    "--panel x": "--panel x: at scale laptop this sweep has mlp_mnist5k",
    "--model.name alexnet --model.width 3": "--model.width: at scale laptop model.name is alexnet, "
    "which has no field width",
}


@pytest.mark.parametrize("argv", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(dry_run: Any, argv: str) -> None:
    assert dry_run(*argv.split(" ")) == (2, "", f"error: {BAD_INPUT[argv]}\n")


def test_a_scale_that_does_not_exist(dry_run: Any) -> None:
    status, out, err = dry_run(scale="huge")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: --scale: invalid choice: 'huge' (choose from")


def test_an_output_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before Ray is started (see the fixture above)."""
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "below"
    assert sweep.main(SWEEP, ["--scale", "laptop", "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"error: output folder {out / 'lr_batch'} cannot be written (Not a directory); choose "
        "another with --out\n"
    )


def test_with_scale_auto_a_fault_at_both_scales_is_told_before_ray(dry_run: Any) -> None:
    status, _, err = dry_run(f"--{BATCH}", "100000", scale="auto")
    assert status == 2
    assert "100000 exceeds the 4000 training samples" in err


@pytest.mark.parametrize(("gpus", "status"), [(0, 2), (4, 0)])
def test_with_scale_auto_a_fault_at_one_scale_matters_at_that_scale(
    dry_run: Any, monkeypatch: pytest.MonkeyPatch, gpus: int, status: int
) -> None:
    n = 10_000  # sound for MNIST and CIFAR-10, not for the laptop's 4,000 digits
    monkeypatch.setattr(sweep, "connect", lambda **_: "joined Ray")
    monkeypatch.setattr(sweep, "cluster_gpus", lambda: gpus)
    found, _, err = dry_run(f"--{BATCH}", str(n), scale="auto")
    assert found == status
    if status:
        assert "error: at scale laptop: training.batch_size = 10000 exceeds the 4000" in err


@pytest.mark.parametrize(
    ("connection", "gpus", "scale", "trials"),
    [("", 0, "laptop", 12), ("joined Ray", 0, "laptop", 12), ("joined Ray", 4, "paper", 33)],
)
def test_auto_is_paper_on_a_cluster_with_a_gpu(
    dry_run: Any,
    monkeypatch: pytest.MonkeyPatch,
    connection: str,
    gpus: int,
    scale: str,
    trials: int,
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(sweep, "connect", lambda **given: asked.append(given) or connection)
    monkeypatch.setattr(sweep, "cluster_gpus", lambda: gpus)
    status, out, _ = dry_run(scale="auto")
    assert status == 0
    assert asked == [{"start_local": False}]
    assert out.startswith(f"Scale {scale}: ")
    assert f"Figure 6: {trials} trials, {trials} to run" in out


def test_the_defaults_that_help_shows_can_be_given_back() -> None:
    owner = {
        "model.filters": {"model.name": "alexnet"},
        "scheme.level": {"scheme.name": "flooding"},
    }
    for path, owners in field_paths().items():
        default = owners[0][1].default
        text = default if isinstance(default, str) else json.dumps(default)
        fields = {path: cli.parse_values(path, text)} | owner.get(path, {})
        shown = make_space(fields).trials()[0].flat().get(path)
        assert shown == (list(default) if isinstance(default, tuple) else default), path
