"""The command line of every sweep, made from the configuration models: no second list of options.

A field takes a value (``0.1``), a grid (``0.1,0.2`` or ``[0.1, 0.2]``) or a distribution
(``uniform(0, 1)``, ``log_uniform(1e-4, 1e-1)``, ``choice(32, 64)``).
"""

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from gisgd_ray.config.space import (
    SearchSpace,
    field_paths,
    has_distribution,
    make_space,
    takes_lists,
)
from gisgd_ray.errors import UserError

_CALL = re.compile(r"(uniform|log_uniform|loguniform|choice)\s*\((.*)\)")
_NEGATIVE = re.compile(r"-(\.?\d|inf)", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    scale: str
    out: str
    dry_run: bool
    resume: bool
    take_over: bool
    reuse: list[Path]
    panel: str | None
    cpus_per_trial: int
    gpus_per_trial: float | None
    """None: found out by trying the largest trial out."""
    checkpoint_every: float
    """Seconds."""
    retries: int
    wandb_requests: float
    """A minute, of all trials together."""
    settings: dict[str, int]
    """``seeds``, ``samples``, ``sampling_seed`` where given."""
    overrides: dict[str, Any]
    """Fields by dotted path."""


class _Parser(argparse.ArgumentParser):
    """Tells a fault in one sentence, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; --help lists every option")


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _share(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return _finite(text)
    except argparse.ArgumentTypeError as fault:
        raise argparse.ArgumentTypeError(f"{fault}, nor is it auto") from None


def _option(help: str, **how: Any) -> dict[str, Any]:
    return {"help": help, **how}


_OPTIONS = {
    "--scale": _option(
        "laptop: bundled data, minutes on 2 cores; paper: the paper's data and grid; "
        "auto (default): paper when the Ray cluster has a GPU",
        choices=("auto", "laptop", "paper"),
        default="auto",
    ),
    "--out": _option(
        "results go to DIR/<sweep name> (default: results); with trials on several machines "
        "a folder that all of them share, or a bucket: s3://BUCKET/DIR, gs://BUCKET/DIR",
        default="results",
        metavar="DIR",
    ),
    "--dry-run": _option(
        "print the trials, what they take and about how long, and stop", action="store_true"
    ),
    "--resume": _option("run only what DIR/<sweep name> does not hold yet", action="store_true"),
    "--take-over": _option(
        "go on in a bucket that a driver which is gone was writing to", action="store_true"
    ),
    "--reuse": _option(
        "take trials that have finished in another sweep's folder from there; may be repeated",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
    ),
    "--panel": _option("run one panel of the figure only", metavar="NAME"),
    "--seeds": _option("replicates of every point", type=int, metavar="N"),
    "--samples": _option("draws from the distributions", type=int, metavar="N"),
    "--sampling-seed": _option("seed of those draws", type=int, metavar="N"),
    "--cpus-per-trial": _option(
        "cores a trial takes (default 1)", type=int, default=1, metavar="N"
    ),
    "--gpus-per-trial": _option(
        "fraction of a GPU a trial takes, or auto (default): as many share one as its memory "
        "and the CPUs allow, measured on the largest trial; no GPU where there is none",
        type=_share,
        default="auto",
        metavar="F",
    ),
    "--checkpoint-every": _option(
        "seconds between a trial's checkpoints, from which it goes on when its process, its "
        "machine or this program is lost (default 60)",
        type=_finite,
        default=60.0,
        metavar="S",
    ),
    "--retries": _option(
        "how often in a row a lost or failing trial is tried again without getting further "
        "than before (default 3)",
        type=int,
        default=3,
        metavar="N",
    ),
    "--wandb-requests": _option(
        "requests a minute in which all trials together send W&B their new points (default "
        "120, or two of each trial if that is more); fewer means later, never fewer points",
        type=_finite,
        default=120.0,
        metavar="N",
    ),
}


def parse(argv: Sequence[str] | None, *, prog: str, description: str) -> Options:
    """Read the command line; ``--help`` prints every field with its meaning and default.

    Raises:
        UserError: an unknown option, or a value that its option cannot take.
    """
    parser = _Parser(
        prog=prog,
        usage="%(prog)s [options] [--FIELD V ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="A field takes a value (0.1), a grid (0.1,0.2) or a distribution (uniform(0,1),\n"
        "log_uniform(1e-4,1e-1), choice(32,64)); a list is one value of a field that takes lists\n"
        "(10,20), and its grid is written in JSON ([[10], [10, 20]]).",
    )
    for option, how in _OPTIONS.items():
        parser.add_argument(option, **how)
    group = parser.add_argument_group("fields of a trial")
    for path, owners in field_paths().items():
        group.add_argument(f"--{path}", metavar="V", help=_help(path, owners))
    known, unknown = parser.parse_known_args(_joined(sys.argv[1:] if argv is None else argv))
    given = vars(known)
    if unknown:
        raise UserError(_unknown(unknown[0], options=given))
    settings = {k: given[k] for k in ("seeds", "samples", "sampling_seed") if given[k] is not None}
    return Options(
        **{each.name: given[each.name] for each in fields(Options) if each.name in given},
        settings=settings,
        overrides={
            path: parse_values(path, given[path])
            for path in field_paths()
            if given[path] is not None
        },
    )


def parse_values(path: str, text: str) -> Any:
    """A field's text as a value, a list (grid) or a distribution's dict.

    Raises:
        UserError: brackets that do not parse, or an unknown distribution.
    """
    text = text.strip()
    call = _CALL.fullmatch(text)
    if call:
        kind, inner = call.groups()
        arguments = _items(inner)
        if kind == "choice":
            if not arguments:
                raise UserError(f"--{path} {text}: choice takes at least one value")
            return {"kind": "choice", "values": arguments}
        if len(arguments) != 2:
            raise UserError(f"--{path} {text}: {kind} takes two numbers, low and high")
        kind = "log_uniform" if kind == "loguniform" else kind
        return {"kind": kind, "low": arguments[0], "high": arguments[1]}
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--{path} {text}: not valid JSON ({error.msg})") from None
    if "(" in text:
        raise UserError(
            f"--{path} {text}: expected a value, a grid like 0.1,0.2 or one of uniform(a,b), "
            "log_uniform(a,b), choice(a,b,...)"
        )
    if "," in text:
        return [_scalar(part) for part in text.split(",") if part.strip()]
    return [_scalar(text)] if takes_lists(path) else _scalar(text)


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
            f"--panel {options.panel}: at scale {scale} this sweep has {', '.join(panels)}"
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


def _joined(argv: Sequence[str]) -> list[str]:
    """``--field -1e-3`` as ``--field=-1e-3``: argparse would take the value for an option."""
    joined: list[str] = []
    for token in argv:
        after_option = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
        if after_option and _NEGATIVE.match(token):
            joined[-1] += f"={token}"
        else:
            joined.append(token)
    return joined


def _unknown(token: str, *, options: Iterable[str]) -> str:
    """What to say of a word that is no option: the nearest one, or how a grid is written."""
    if not token.startswith("-"):
        return f"{token!r} belongs to no option; a grid is one word, as in 0.1,0.2"
    name = token.partition("=")[0]
    known = [f"--{o if o in field_paths() else o.replace('_', '-')}" for o in options]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "--help lists every option"
    return f"{name} is not an option; {hint}"


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
    if "Literal" in str(info.annotation):
        options = ", ".join(str(o) for o in getattr(info.annotation, "__args__", ()))
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
