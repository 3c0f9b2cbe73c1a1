"""The command line of a sweep: its options, what they parse to, and what it says of bad input."""

import inspect
import json
import re
import shlex
from typing import Any

import pytest

from gisgd_ray.config.catalogue import DATASETS, MODELS, SCHEMES
from gisgd_ray.config.space import SearchSpace, field_paths, make_space
from gisgd_ray.errors import UserError
from gisgd_ray.runner import cli

RATE, BATCH = "training.learning_rate", "training.batch_size"


def options(*argv: str) -> cli.Options:
    return cli.parse(argv, prog="sweep", description="A sweep.")


# ---------------------------------------------------------------- the options and their help


def shown_help(capsys: pytest.CaptureFixture[str], *about: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.parse(
            ["--help", *about], prog="sweep", description="A sweep.", varied={BATCH: [20, 40]}
        )
    assert caught.value.code == 0
    return capsys.readouterr().out


def named(text: str) -> list[str]:
    return re.findall(r"^  --(\S+) V\b", text, flags=re.MULTILINE)


def test_every_field_of_a_trial_is_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = named(shown_help(capsys, "all"))
    assert listed == list(field_paths())
    assert listed[-1] == "replicas"
    # There is no second list: a field that is added is an option by itself.
    source = inspect.getsource(cli).replace(cli.EXAMPLES, "")
    assert not any(path in source for path in field_paths() if "." in path)
    more = field_paths() | {"data.new_one": field_paths()["data.dataset"]}
    monkeypatch.setattr(cli, "field_paths", lambda: more)
    monkeypatch.setattr(cli, "takes_lists", lambda path: False)  # noqa: ARG005
    assert options("--data.new_one", "3").overrides == {"data.new_one": 3}


def test_help_is_of_what_the_sweep_varies_unless_asked_for_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown_help(capsys)
    assert named(text) == [BATCH]
    assert "here 20,40" in re.sub(r"\s+", " ", text)
    assert text.startswith("usage: sweep [options] [--FIELD V ...]\n")
    assert named(shown_help(capsys, "scheme"))[0] == "scheme.name"
    assert "--scale" not in shown_help(capsys, "scheme")
    for shown in (text, shown_help(capsys, "all")):
        for option in cli.Options.model_fields.keys() - {"fields"}:
            assert f"--{option.replace('_', '-')}" in shown
        assert "None" not in shown


def test_the_examples_of_help_are_sound() -> None:
    """Each is a command line of its own, here of a sweep that varies a field it names."""
    lines = [shlex.split(line) for line in cli.EXAMPLES.splitlines() if line.startswith("  ")]
    assert len(lines) == 3
    for program, *argv in lines:
        assert program == "{prog}"
        assert cli.apply({"a": SearchSpace()}, options(*argv), scale="laptop")["a"].trials()


def test_of_what_is_given_twice_the_last_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """As where a script has options of its own and adds those it is given."""
    given = options("--seeds", "3", f"--{RATE}=0.1,0.2", "--seeds=4", f"--{RATE}", "0.3")
    assert (given.seeds, given.overrides) == (4, {RATE: 0.3})
    assert "Of what is given twice the\nlast counts." in shown_help(capsys)


def test_help_shows_descriptions_bounds_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys, "all")
    unwrapped = re.sub(r"\s+", "", text)
    for path, owners in field_paths().items():
        assert re.sub(r"\s+", "", str(owners[0][1].description)) in unwrapped, path
    for part in (
        "step size lambda_t before any schedule [> 0, default 0.01]",
        "[> 0, <= 1, default 1.0]",
        "of the SGD step; outside the theorem when not 0 [>= 0, < 1, default 0.0]",
        f"[default mnist5k] ({', '.join(DATASETS)})",
        f"model family [{', '.join(MODELS)}]",
        f"training scheme [{', '.join(SCHEMES)}]",
        "(variant average) or 1 (absolute) [>= 0, <= 1, default 0.5]",
        "(weights, local)",
        "fraction of units set to zero [>= 0, < 1, default 0.1]",
        "(1/255) [>= 0, <= 255, default 1.0]",
        "(Tables 1-3: 50); null: never [> 0, default null]",
        "Nesterov's form of the momentum [default false]",
        "stop at 100 % training accuracy; null: exactly when there is label noise [default null]",
        "[default []]",
        "[default [0.01, 0.0001, 1e-06]]",
        "(auto, exact, pyhessian, off)",
        "(epoch, step, log)",
        "draws of the perturbation zeta for Psi [>= 2, default 20]",
        "null: the deterministic setting, one run [<= 1e+06, default null]",
    ):
        assert re.sub(r"\s+", "", part) in unwrapped, part


def test_nothing_given() -> None:
    plain = options()
    assert (plain.scale, plain.out, plain.panel) == ("auto", "results", None)
    assert (plain.dry_run, plain.resume) == (False, False)
    assert (plain.cpus_per_trial, plain.gpus_per_trial) == (1, "auto")
    assert (plain.settings, plain.overrides) == ({}, {})


def test_the_environment_answers_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OUT", "SEEDS", "RESUME", "PANEL"):
        monkeypatch.setenv(name, "1")
    assert options() == cli.Options(fields=[])


def test_settings() -> None:
    given = options("--seeds", "3", "--samples=4", "--sampling-seed", "5", "--panel", "a")
    assert given.settings == {"seeds": 3, "samples": 4, "sampling_seed": 5}
    assert given.panel == "a"
    assert options("--gpus-per-trial", ".5").gpus_per_trial == 0.5


LAUNCH = {
    f"--{name.replace('_', '-')}": info.annotation is bool
    for name, info in cli.Options.model_fields.items()
    if name != "fields"
}


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        options(*argv).overrides  # noqa: B018
    return str(caught.value)


@pytest.mark.parametrize("option", [option for option, flag in LAUNCH.items() if not flag])
def test_an_option_without_its_value(option: str) -> None:
    sentence = f"{option}: expected one argument; --help lists every option"
    for argv in ([option], [option, "--resume"], [option, f"--{RATE}", "0.1"]):
        assert refused(*argv) == sentence


@pytest.mark.parametrize("flag", [option for option, flag in LAUNCH.items() if flag])
@pytest.mark.parametrize("value", ["maybe", "1", "true", "false", ""])
def test_a_flag_with_a_value(flag: str, value: str) -> None:
    assert refused(f"{flag}={value}") == (
        f"{flag}={value}: {flag} takes no value; give {flag} alone, or leave it out"
    )


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--sede", "did you mean --seeds or --seed?"),
        ("--fields", "--help lists every option"),
        ("--hepl", "did you mean --help?"),
        ("--gpu", "did you mean --gpus-per-trial?"),
        ("--batch-size=3", f"did you mean --{BATCH}?"),
        ("--model=mlp", "did you mean --model.name or --model.width or --model.filters?"),
        ("--", "--help lists every option"),
    ],
)
def test_what_is_no_option(word: str, hint: str) -> None:
    assert refused(word) == f"{word.partition('=')[0]} is not an option; {hint}"


@pytest.mark.parametrize("about", ["all", "scheme", ""])
def test_help_takes_its_subject_after_a_space(about: str) -> None:
    for option in ("--help", "-h"):
        assert refused(f"{option}={about}") == (
            f"{option}={about} is not an option; did you mean {f'{option} {about}'.strip()}?"
        )


@pytest.mark.parametrize(("option", "path"), [("--out", ""), ("--out", " "), ("--reuse", "")])
def test_a_folder_has_a_name(option: str, path: str) -> None:
    for argv in ([option, path], [f"{option}={path}"]):
        assert refused(*argv) == f"{option} = {path!r}: input should name a folder"


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("--checkpoint-every", "1e300", "less than or equal to 604800"),
        ("--retries", f"{10**23}", "less than or equal to 1000000"),
        ("--wandb-requests", "1e300", "less than or equal to 1000000"),
        ("--cpus-per-trial", f"{10**23}", "less than or equal to 10000"),
        ("--gpus-per-trial", "1e300", "less than or equal to 1000, or auto"),
        ("--sampling-seed", f"{2**63}", f"less than {2**63}"),
    ],
)
def test_a_number_that_nobody_means(option: str, value: str, bound: str) -> None:
    assert refused(option, value) == f"{option} = {value}: input should be {bound}"


@pytest.mark.parametrize(("given", "shown"), [("", "''"), ("1 2", "'1 2'"), ("1\n2", "'1 2'")])
def test_what_was_given_shows_on_one_line(given: str, shown: str) -> None:
    sentence = "input should be a valid integer, unable to parse string as an integer"
    for argv in (["--seeds", given], [f"--seeds={given}"]):
        assert refused(*argv) == f"--seeds = {shown}: {sentence}"


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


def test_equal_values_of_a_grid_are_run_once() -> None:
    for text in ("0.1,0.1", "0.1,0.10,1e-1", "[0.1, 0.1]"):
        trials = cli.apply({"a": SearchSpace()}, options(f"--{RATE}", text), scale="laptop")[
            "a"
        ].trials()
        assert [t.training.learning_rate for t in trials] == [0.1]


MEANS_NOTHING = {
    "[0.1, 0.2": "not valid JSON (Expecting ',' delimiter)",
    "{each: 2}": "not valid JSON (Expecting property name enclosed in double quotes)",
    "uniform(1)": "uniform takes two numbers, low and high",
    "choice()": "choice takes at least one value",
    **dict.fromkeys(
        (
            "0.1,",
            ",0.1",
            "0.1, ,0.2",
            ",",
            "choice(20,,30)",
            "choice(mlp,alexnet,)",
            "uniform(0,)",
        ),
        "a value is empty; leave out the comma before or after it",
    ),
    "normal(0,1)": "expected a value, a grid like 0.1,0.2 or one of uniform(a,b), "
    "log_uniform(a,b), choice(a,b,...)",
    "uniform(0,1": "expected a value, a grid like 0.1,0.2 or one of uniform(a,b), "
    "log_uniform(a,b), choice(a,b,...)",
}


@pytest.mark.parametrize("text", MEANS_NOTHING)
def test_text_that_means_nothing(text: str) -> None:
    with pytest.raises(UserError) as caught:
        options(f"--{RATE}", text).overrides  # noqa: B018
    assert str(caught.value) == f"--{RATE} {text}: {MEANS_NOTHING[text]}"


def test_of_a_long_value_the_beginning_is_shown() -> None:
    assert refused(f"--{RATE}", "2," * 1000) == (
        f"--{RATE} {'2,' * 100} ...: a value is empty; leave out the comma before or after it"
    )


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
    "--scheme.name sam,gmp --scheme.level 1": "--scheme.level: at scale laptop scheme.name is gmp, "
    "sam, which has no field level",
    "--model.name mlp --model.filters 3": "--model.filters: at scale laptop model.name is mlp, "
    "which has no field filters",
    "--model.name linear --model.width 3": "--model.width: at scale laptop model.name is linear, "
    "which has no field width",
    "--scheme.name sgd --scheme.level 1": "--scheme.level: at scale laptop scheme.name is sgd, "
    "which has no field level",
}


@pytest.mark.parametrize("argv", FOREIGN)
def test_a_field_that_no_panel_has(argv: str) -> None:
    with pytest.raises(UserError) as caught:
        applied(*argv.split(" "))
    assert str(caught.value) == FOREIGN[argv]


# ---------------------------------------------------------------- the whole command


def test_the_defaults_that_help_shows_can_be_given_back() -> None:
    needed = {"linear": {"data.dataset": "teacher", "training.loss": "squared"}}
    needed |= {"two_layer_relu": needed["linear"], "vgg16": {"data.dataset": "cifar10"}}
    for path, owners in field_paths().items():
        section = path.partition(".")[0]
        for model, info in owners:
            text = info.default if isinstance(info.default, str) else json.dumps(info.default)
            fields = {path: cli.parse_values(path, text)}
            if section in ("model", "scheme"):
                tag = model.model_fields["name"].default
                fields |= {f"{section}.name": tag} | needed.get(tag, {})
            shown = make_space(fields).trials()[0].flat().get(path)
            default = list(info.default) if isinstance(info.default, tuple) else info.default
            assert shown == default, (path, model)
