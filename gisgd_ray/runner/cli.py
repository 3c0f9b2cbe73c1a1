"""The command line of every sweep, made from the configuration models: no second list of options.

A field takes a value (``0.1``), a grid (``0.1,0.2`` or ``[0.1, 0.2]``) or a distribution
(``uniform(0, 1)``, ``log_uniform(1e-4, 1e-1)``, ``choice(32, 64)``).
"""

import argparse
import difflib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    CliUnknownArgs,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from gisgd_ray.config.space import (
    LONGEST,
    SearchSpace,
    field_paths,
    has_distribution,
    make_space,
    takes_lists,
)
from gisgd_ray.errors import UserError, one_line

_CALL = re.compile(r"(uniform|log_uniform|loguniform|choice)\s*\((.*)\)")


EXAMPLES = """
examples:
  {prog} --dry-run
  {prog} --seeds 5 --training.learning_rate 0.05,0.1 --out mine
  {prog} --training.batch_size 'choice(20, 40, 80)' --samples 2 --resume
"""


def _share(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("input should be 0, a fraction up to 1 or a whole number")
    return value


def _named(value: Any) -> Any:
    """An empty path would be the working directory."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("input should name a folder")
    return value


class Options(BaseSettings):
    """What was asked for on the command line."""

    model_config = SettingsConfigDict(
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags="toggle",
        cli_exit_on_error=False,
        cli_ignore_unknown_args=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    scale: Literal["auto", "laptop", "paper"] = Field(
        "auto",
        description="laptop: bundled data, minutes on 2 cores; paper: the paper's data and grid; "
        "auto: paper when the Ray cluster has a GPU",
    )
    out: Annotated[str, BeforeValidator(_named)] = Field(
        "results",
        description="results go to OUT/<sweep name>; with trials on several machines a folder that "
        "all of them share, or a bucket: s3://BUCKET/DIR, gs://BUCKET/DIR",
    )
    dry_run: bool = Field(
        False, description="print the trials, what they take and about how long, and stop"
    )
    resume: bool = Field(False, description="run only what OUT/<sweep name> does not hold yet")
    take_over: bool = Field(
        False, description="go on in a bucket that a driver which is gone was writing to"
    )
    reuse: list[Annotated[Path, BeforeValidator(_named)]] = Field(
        [],
        description="take trials that have finished in another sweep's folder from there; may be "
        "repeated",
    )
    panel: str | None = Field(None, description="run one panel of the figure only")
    seeds: int | None = Field(None, ge=1, description="replicates of every point")
    samples: int | None = Field(None, ge=1, description="draws from the distributions")
    sampling_seed: int | None = Field(None, ge=0, lt=2**63, description="seed of those draws")
    cpus_per_trial: int = Field(1, ge=1, le=10_000, description="cores a trial takes")
    gpus_per_trial: (
        Annotated[float, Field(ge=0, le=1_000, allow_inf_nan=False), AfterValidator(_share)]
        | Literal["auto"]
    ) = Field(
        "auto",
        description="fraction of a GPU a trial takes; auto: as many share one as its memory and "
        "the CPUs allow, measured on the largest trial; no GPU where there is none",
    )
    trials_per_stack: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = Field(
        "auto",
        description="trials of one shape (network, batch size, loss; linear layers and ReLU) that "
        "advance together in one process; auto: 1 on a CPU, on a GPU as many as measuring says",
    )
    checkpoint_every: float = Field(
        60.0,
        ge=0.1,
        le=604_800,
        allow_inf_nan=False,
        description="seconds between a trial's checkpoints, from which it goes on when its "
        "process, its machine or this program is lost",
    )
    retries: int = Field(
        3,
        ge=0,
        le=1_000_000,
        description="how often in a row a lost or failing trial is tried again without getting "
        "further than before",
    )
    wandb_requests: float = Field(
        120.0,
        gt=0,
        le=1_000_000,
        allow_inf_nan=False,
        description="requests a minute in which all trials together send W&B their new points, or "
        "two of each trial if that is more; fewer means later, never fewer points",
    )
    fields: CliUnknownArgs
    """The fields of a trial as they were given."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_others: PydanticBaseSettingsSource,
        **_more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Not the environment: a variable OUT is nobody's answer to --out."""
        del settings_cls
        return (init_settings,)

    @property
    def settings(self) -> dict[str, int]:
        """``seeds``, ``samples``, ``sampling_seed`` where given."""
        return self.model_dump(include={"seeds", "samples", "sampling_seed"}, exclude_none=True)

    @cached_property
    def overrides(self) -> dict[str, Any]:
        """Fields by dotted path.

        Raises:
            UserError: no such field, or a value that cannot be read.
        """
        found: dict[str, Any] = {}
        known, words = field_paths(), iter(self.fields)
        for word in words:
            name, equals, text = word.partition("=")
            path = name.removeprefix("--")
            if not name.startswith("--") or path not in known:
                raise UserError(_unknown(word))
            given = text if equals else next(words, "--")
            if not equals and given.startswith("--"):
                raise UserError(f"{name}: expected one argument; --help lists every option")
            found[path] = parse_values(path, given)
        return found


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Without a default that goes without saying."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return re.sub(r" \(default: (None|False|\[\])\)$", "", action.help or "")


def parse(
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    varied: Mapping[str, Any] | None = None,
) -> Options:
    """Read the launch options; fields of a trial are read by :attr:`Options.overrides`.

    ``--help`` prints the launch options and the fields that the sweep varies, ``--help all`` all
    fields, ``--help scheme`` those of a section.

    Args:
        argv: None takes the process's.
        prog, description: of the script.
        varied: fields that the sweep varies, with their values.

    Raises:
        UserError: an option without a value, or with one that it cannot take.
        SystemExit: help was asked for.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [options] [--FIELD V ...]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
        add_help=False,
    )
    source = CliSettingsSource[Any](Options, root_parser=parser)
    if asked := [i for i, word in enumerate(words) if word in ("-h", "--help")]:
        _show_help(parser, varied or {}, about=words[asked[0] + 1 :])
        raise SystemExit(0)
    _require_bare(words)
    try:
        return CliApp.run(Options, cli_args=words, cli_settings_source=source)
    except argparse.ArgumentError as fault:
        raise UserError(
            f"{fault.argument_name}: {fault.message}; --help lists every option"
        ) from None
    except SettingsError as fault:
        raise UserError(f"{fault}; --help lists every option") from None
    except ValidationError as fault:
        raise UserError("; ".join(map(_fault, _of_each_option(fault)))) from None


def _require_bare(words: Sequence[str]) -> None:
    """Raises UserError on a flag with a value."""
    flags = [
        _option(name) for name, info in Options.model_fields.items() if info.annotation is bool
    ]
    for word in words:
        name, equals, _value = word.partition("=")
        if equals and name in flags:
            raise UserError(
                f"{_typed(word)}: {name} takes no value; give {name} alone, or leave it out"
            )


def _option(field: str) -> str:
    """A launch option as it is typed."""
    return f"--{field.replace('_', '-')}"


def _typed(given: object) -> str:
    """What was given, on one line and as a shell takes it: what is empty shows."""
    return one_line(shlex.quote(str(given)), LONGEST)


def _show_help(
    parser: argparse.ArgumentParser, varied: Mapping[str, Any], *, about: Sequence[str]
) -> None:
    """Print what help was asked for.

    Args:
        parser: has the launch options.
        varied: as for :func:`parse`.
        about: "all", or a section of a trial; or nothing, or another option.

    Raises:
        UserError: no such section.
    """
    sections = list(dict.fromkeys(path.partition(".")[0] for path in field_paths()))
    topic = about[0] if about and not about[0].startswith("-") else None
    if topic not in (None, "all", *sections):
        raise UserError(f"--help {topic}: there is help about all, {', '.join(sections)}")
    fields = argparse.ArgumentParser(prog=parser.prog, usage=argparse.SUPPRESS, add_help=False)
    title = "fields of a trial" if topic else "fields of a trial that this sweep varies"
    group = fields.add_argument_group(title)
    for path, owners in field_paths().items():
        if topic == "all" or path.partition(".")[0] == topic or (not topic and path in varied):
            here = f"; here {_shown(varied[path])}" if path in varied else ""
            group.add_argument(f"--{path}", metavar="V", help=_help(path, owners) + here)
    if topic in (None, "all"):
        parser.print_help()
        print()
    print(fields.format_help())
    print(
        "A field takes a value (0.1), a grid (0.1,0.2) or a distribution (uniform(0,1),\n"
        "log_uniform(1e-4,1e-1), choice(32,64)); a list is one value of a field that takes lists\n"
        "(10,20), and its grid is written in JSON ([[10], [10, 20]]). Of what is given twice the\n"
        "last counts."
    )
    if topic is None:
        print(EXAMPLES.format(prog=parser.prog))
        print(f"--help all lists every field, --help SECTION those of {', '.join(sections)}.")


def _shown(values: Any) -> str:
    """What a sweep has for a field, as it would be typed."""
    text = ",".join(map(str, values)) if isinstance(values, list | range) else str(values)
    return text.replace("%", "%%")


def parse_values(path: str, text: str) -> Any:
    """A field's text as a value, a list (grid) or a distribution's dict.

    Raises:
        UserError: brackets that do not parse, an empty value, or an unknown distribution.
    """
    text = text.strip()
    given = f"--{path} {one_line(text, LONGEST)}"
    call = _CALL.fullmatch(text)
    if call:
        kind, inner = call.groups()
        arguments = _items(inner)
        _require_none_empty(given, arguments)
        if kind == "choice":
            if not arguments:
                raise UserError(f"{given}: choice takes at least one value")
            return {"kind": "choice", "values": arguments}
        if len(arguments) != 2:
            raise UserError(f"{given}: {kind} takes two numbers, low and high")
        kind = "log_uniform" if kind == "loguniform" else kind
        return {"kind": kind, "low": arguments[0], "high": arguments[1]}
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{given}: not valid JSON ({error.msg})") from None
    if "(" in text:
        raise UserError(
            f"{given}: expected a value, a grid like 0.1,0.2 or one of uniform(a,b), "
            "log_uniform(a,b), choice(a,b,...)"
        )
    if "," in text:
        grid = [_scalar(part) for part in text.split(",")]
        _require_none_empty(given, grid)
        return grid
    return [_scalar(text)] if takes_lists(path) else _scalar(text)


def _require_none_empty(given: str, values: Sequence[Any]) -> None:
    """Raises UserError on a comma too many."""
    if any(value == "" for value in values):
        raise UserError(f"{given}: a value is empty; leave out the comma before or after it")


def apply(
    panels: Mapping[str, SearchSpace], options: Options, *, scale: str
) -> dict[str, SearchSpace]:
    """The panels asked for, with the command line's fields in place of their own.

    A field of one model family changes only the panels whose model has it.

    Raises:
        UserError: an unknown panel, or a field that no panel has.
    """
    if options.panel is not None and options.panel not in panels:
        raise UserError(
            f"--panel {_typed(options.panel)}: at scale {scale} this sweep has {', '.join(panels)}"
        )
    chosen = {k: v for k, v in panels.items() if options.panel in (None, k)}
    fields = {name: _overridden(space.fields, options.overrides) for name, space in chosen.items()}
    for path in options.overrides:
        if not any(path in mine for mine in fields.values()):
            section = path.partition(".")[0]
            names = sorted({name for mine in fields.values() for name in _names(section, mine)})
            raise UserError(
                f"--{path}: at scale {scale} {section}.name is {', '.join(names)}, which has no "
                f"field {path.rpartition('.')[2]}"
            )
    drawn = {name: has_distribution(mine) for name, mine in fields.items()}
    spaces = {}
    for name, space in chosen.items():
        settings = {**space.model_dump(exclude={"fields"}), **options.settings}
        if not drawn[name] and ("samples" not in options.settings or any(drawn.values())):
            settings["samples"] = 1  # the distribution is another panel's, or was replaced
        spaces[name] = make_space(fields[name], **settings)
    return spaces


def _overridden(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A panel's fields with those of the overrides that its model and scheme have."""
    kept = dict(fields)
    for section in ("model", "scheme"):
        if f"{section}.name" in overrides:
            # Another model: the fields of the one it replaces go with it.
            kept = {k: v for k, v in kept.items() if not k.startswith(f"{section}.")}
    mine = {k: v for k, v in overrides.items() if _applies(k, {**kept, **overrides})}
    return {**kept, **mine}


def _applies(path: str, fields: Mapping[str, Any]) -> bool:
    """Whether the model (or scheme) these fields choose has the field."""
    section = path.partition(".")[0]
    if f"{section}.name" not in fields or path == f"{section}.name":
        return True
    owners = {owner.model_fields["name"].default for owner, _ in field_paths()[path]}
    return bool(owners & set(_names(section, fields)))


def _names(section: str, fields: Mapping[str, Any]) -> list[str]:
    """The models (or schemes) that these fields choose, by value, grid or distribution."""
    chosen = fields.get(f"{section}.name")
    if isinstance(chosen, Mapping):
        chosen = chosen.get("values", [])
    return [str(name) for name in chosen] if isinstance(chosen, list | tuple) else [str(chosen)]


def _of_each_option(fault: ValidationError) -> Iterable[Any]:
    """One finding for each option: of a union every member has one, the first says most."""
    return {finding["loc"][0]: finding for finding in reversed(fault.errors())}.values()


def _fault(finding: Any) -> str:
    name = str(finding["loc"][0])
    message = finding["msg"].removeprefix("Value error, ")
    auto = ", or auto" if Options.model_fields[name].default == "auto" and name != "scale" else ""
    value = _typed(finding["input"])
    return f"{_option(name)} = {value}: {message[0].lower()}{message[1:]}{auto}"


def _unknown(word: str) -> str:
    """What to say of a word that is no option: the nearest ones, or how a grid is written."""
    if not word.startswith("-"):
        return f"{word!r} belongs to no option; a grid is one word, as in 0.1,0.2"
    name, equals, value = word.partition("=")
    if equals and name in ("-h", "--help"):
        return f"{_typed(word)} is not an option; did you mean {f'{name} {value}'.strip()}?"
    options = [_option(field) for field in Options.model_fields if field != "fields"] + ["--help"]
    fields = [f"--{path}" for path in field_paths()]
    close = [each for each in (*options, *fields) if name.strip("-") and each.startswith(name)][:3]
    if not close:  # a launch option and a field of a trial may be as near
        close = [near for each in (options, fields) for near in _closest(name, each)]
    hint = f"did you mean {' or '.join(close)}?" if close else "--help lists every option"
    return f"{_typed(name)} is not an option; {hint}"


def _closest(name: str, known: Sequence[str]) -> list[str]:
    """The nearest of the options, if one is near."""
    bare = [each.removeprefix("--") for each in known]
    return [f"--{near}" for near in difflib.get_close_matches(name.lstrip("-"), bare, n=1)]


def _items(text: str) -> list[Any]:
    """The arguments of a distribution: JSON where it is, else words between commas."""
    try:
        return list(json.loads(f"[{text}]"))
    except ValueError:
        return [_scalar(part) for part in text.split(",")]


def _scalar(text: str) -> Any:
    """A JSON literal (number, true, false, null), else the text itself."""
    text = text.strip()
    try:
        return json.loads(text)
    except ValueError:
        return text


def _help(path: str, owners: Sequence[tuple[Any, Any]]) -> str:
    if path.endswith(".name"):
        names = ", ".join(str(model.model_fields["name"].default) for model, _ in owners)
        return f"{owners[0][1].description or ''} [{names}]".replace("%", "%%")
    # A field that several models or schemes have may mean something else in each.
    meanings: dict[str, list[str]] = {}
    for model, info in owners:
        name = model.model_fields["name"].default if "name" in model.model_fields else ""
        meanings.setdefault(_meaning(info), []).append(str(name))
    if len(meanings) == 1:
        return next(iter(meanings)).replace("%", "%%")
    parts = [f"{', '.join(names)}: {meaning}" for meaning, names in meanings.items()]
    return "; ".join(parts).replace("%", "%%")


def _meaning(info: Any) -> str:
    """What a field is, its bounds, default and options."""
    shown = info.default if isinstance(info.default, str) else json.dumps(info.default)
    text = f"{info.description or ''} [{', '.join([*_bounds(info), f'default {shown}'])}]"
    if get_origin(info.annotation) is Literal:
        options = ", ".join(map(str, get_args(info.annotation)))
        text += f" ({options})"
    return text


def _bounds(info: Any) -> list[str]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return [
        f"{sign} {getattr(rule, name):g}"
        for rule in info.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
