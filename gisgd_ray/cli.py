"""The command line of every sweep, made from the configuration models: no second list of options.

A field takes a value (``0.1``), a grid (``0.1,0.2`` or ``[0.1, 0.2]``) or a distribution
(``uniform(0, 1)``, ``log_uniform(1e-4, 1e-1)``, ``choice(32, 64)``).
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gisgd_ray.errors import UserError
from gisgd_ray.search_space import SearchSpace, field_paths, make_space

_CALL = re.compile(r"\s*(uniform|log_uniform|loguniform|choice)\s*\((.*)\)\s*$")


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    scale: str
    out: Path
    dry_run: bool
    resume: bool
    panel: str | None
    cpus_per_trial: int
    gpus_per_trial: float | None
    settings: dict[str, int]
    """``seeds``, ``samples``, ``sampling_seed`` where given."""
    overrides: dict[str, Any]
    """Fields by dotted path."""


def parse(argv: Sequence[str] | None, *, prog: str, description: str) -> Options:
    """Read the command line; ``--help`` prints every field with its meaning and default."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="A field takes a value (0.1), a grid (0.1,0.2) or a distribution "
        "(uniform(0,1), log_uniform(1e-4,1e-1), choice(32,64)).",
    )
    add = parser.add_argument
    add("--scale", choices=("auto", "laptop", "paper"), default="auto",
        help="laptop: bundled data, minutes on 2 cores; paper: the paper's data and grid; "
        "auto (default): paper when the Ray cluster has a GPU")
    add("--out", type=Path, default=Path("results"), metavar="DIR",
        help="results go to DIR/<sweep name> (default: results)")
    add("--dry-run", action="store_true", help="print the trials and stop")
    add("--resume", action="store_true", help="run only what DIR/<sweep name> does not hold yet")
    add("--panel", metavar="NAME", help="run one panel of the figure only")
    add("--seeds", type=int, metavar="N", help="replicates of every point")
    add("--samples", type=int, metavar="N", help="draws from the distributions")
    add("--sampling-seed", type=int, metavar="N", help="seed of those draws")
    add("--cpus-per-trial", type=int, default=1, metavar="N", help="cores a trial takes (default 1)")
    add("--gpus-per-trial", type=float, metavar="F",
        help="fraction of a GPU a trial takes (default: 0.25 when the cluster has GPUs, else 0)")
    fields = parser.add_argument_group("fields of a trial")
    for path, owners in field_paths().items():
        fields.add_argument(f"--{path}", metavar="V", help=_help(path, owners))
    given = vars(parser.parse_args(argv))
    settings = {k: given[k] for k in ("seeds", "samples", "sampling_seed") if given[k] is not None}
    return Options(
        scale=given["scale"],
        out=given["out"],
        dry_run=given["dry_run"],
        resume=given["resume"],
        panel=given["panel"],
        cpus_per_trial=given["cpus_per_trial"],
        gpus_per_trial=given["gpus_per_trial"],
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
    call = _CALL.match(text)
    if call:
        kind, inner = call.groups()
        arguments = [_scalar(part) for part in inner.split(",")]
        if kind == "choice":
            return {"kind": "choice", "values": arguments}
        if len(arguments) != 2:
            raise UserError(f"--{path} {text}: {kind} takes two numbers, low and high")
        kind = "log_uniform" if kind == "loguniform" else kind
        return {"kind": kind, "low": arguments[0], "high": arguments[1]}
    if text[:1] in "[{" and text:
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
    return _scalar(text)


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
    used: set[str] = set()
    spaces = {}
    for name, space in chosen.items():
        fields = dict(space.fields)
        for section in ("model", "scheme"):
            if f"{section}.name" in options.overrides:
                # Another model: the fields of the one it replaces go with it.
                fields = {k: v for k, v in fields.items() if not k.startswith(f"{section}.")}
        mine = {
            path: values
            for path, values in options.overrides.items()
            if _applies(path, {**fields, **options.overrides})
        }
        used |= set(mine)
        settings = {**space.model_dump(exclude={"fields"}), **options.settings}
        spaces[name] = make_space({**fields, **mine}, **settings)
    for path in options.overrides:
        if path not in used:
            section = path.partition(".")[0]
            names = sorted({str(s.fields.get(f"{section}.name")) for s in chosen.values()})
            raise UserError(f"--{path}: {section} {', '.join(names)} has no such field")
    return spaces


def _applies(path: str, fields: Mapping[str, Any]) -> bool:
    """Whether the model (or scheme) these fields choose has the field."""
    section, _, _ = path.partition(".")
    chosen = fields.get(f"{section}.name")
    if chosen is None or path == f"{section}.name":
        return True
    names = chosen if isinstance(chosen, Iterable) and not isinstance(chosen, str) else [chosen]
    owners = {owner.model_fields["name"].default for owner, _ in field_paths()[path]}
    return bool(owners & set(names))


def _scalar(text: str) -> Any:
    """A JSON literal (number, true, false, null), else the text itself."""
    text = text.strip()
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _help(path: str, owners: Sequence[tuple[Any, Any]]) -> str:
    _, info = owners[0]
    text = info.description or ""
    if not path.endswith(".name"):
        default = info.default
        shown = default.model_dump_json() if hasattr(default, "model_dump_json") else default
        text += f" [{', '.join([*_bounds(info), f'default {shown}'])}]"
    else:
        text += f" [{', '.join(str(model.model_fields['name'].default) for model, _ in owners)}]"
    if "Literal" in str(info.annotation) and not path.endswith(".name"):
        options = ", ".join(str(o) for o in getattr(info.annotation, "__args__", ()))
        text += f" ({options})"
    return text.replace("%", "%%")


def _bounds(info: Any) -> list[str]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return [
        f"{sign} {getattr(rule, name):g}"
        for rule in info.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
