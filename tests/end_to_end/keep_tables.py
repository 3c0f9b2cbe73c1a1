"""Tables of all sweeps at laptop scale, kept before a change that must alter no number.

``python -m tests.end_to_end.keep_tables make FOLDER`` runs every sweep with one seed (some 20
minutes on 2 cores); ``... compare BEFORE AFTER`` tells where two such folders, perhaps made by two
versions, differ in any bit of ``trials``, ``history`` and ``steps``, times aside: trials are found
by their settings, not by their names. Its status is 1 if they do.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from gisgd_ray.config.space import field_paths

ROOT = Path(__file__).parents[2]
OWN = ("time/", "wandb/", "hostname", "trial_id", "settings")
"""What two runs of one trial need not have in common."""


def make(folder: Path) -> None:
    """Every sweep of ``sweeps/``, one after the other."""
    for script in sorted((ROOT / "sweeps").glob("[!_]*.py")):
        command = [sys.executable, str(script), "--scale", "laptop", "--seeds", "1"]
        environment = {**os.environ, "WANDB_MODE": "disabled"}
        subprocess.run([*command, "--out", str(folder)], check=True, cwd=ROOT, env=environment)


def differences(before: Path, after: Path) -> Iterator[str]:
    """A line for every column that is not the same in both, or in one alone."""
    for old in sorted(before.glob("*/trials.parquet")):
        sweep = old.parent.name
        if not (after / sweep / old.name).exists():
            yield f"{sweep}: only before"
            continue
        names = [
            _by_settings(pd.read_parquet(f / sweep / "trials.parquet")) for f in (before, after)
        ]
        shared = [key for key in names[0] if key in names[1]]
        if not shared:
            yield f"{sweep}: no trial is in both"
            continue
        print(f"{sweep}: {len(shared)} trials are in both", flush=True)
        pairs = [(names[0][key], names[1][key]) for key in shared]
        for table in ("trials", "history"):
            frames = [pd.read_parquet(f / sweep / f"{table}.parquet") for f in (before, after)]
            for column in _differing(
                *(
                    pd.concat([frame[frame["trial_id"] == pair[i]] for pair in pairs])
                    for i, frame in enumerate(frames)
                )
            ):
                yield f"{sweep}: {table}: {column}"
        found: dict[str, int] = {}
        for pair in pairs:
            steps = [
                pd.read_parquet(folder / sweep / "steps" / f"{name}.parquet")
                for folder, name in zip((before, after), pair, strict=True)
            ]
            for column in _differing(*steps):
                found[column] = found.get(column, 0) + 1
        for column, count in found.items():
            yield f"{sweep}: steps of {count} trials: {column}"


def _by_settings(trials: pd.DataFrame) -> dict[str, str]:
    """Ids by what the trials have: a table has more fields than its trials."""
    filled = trials.columns[trials.notna().any()]
    fields = [name for name in field_paths() if name in filled]
    keys = ["; ".join(map(str, row)) for row in trials[fields].itertuples(index=False)]
    return dict(zip(keys, trials["trial_id"], strict=True))


def _differing(old: pd.DataFrame, new: pd.DataFrame) -> Iterator[str]:
    for column in dict.fromkeys([*old.columns, *new.columns]):
        if column.startswith(OWN):
            continue
        if column not in old or column not in new:
            if (old if column in old else new)[column].isna().all():
                continue  # as good as none
            yield f"{column} (only {'after' if column in new else 'before'})"
            continue
        left, right = (frame[column].reset_index(drop=True) for frame in (old, new))
        # As text, which tells a float to the bit; lists are no values that could be compared.
        if not left.astype(str).equals(right.astype(str)):
            yield column


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("folder", type=Path)
    two = commands.add_parser("compare")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    told = parser.parse_args()
    if told.command == "make":
        make(told.folder.absolute())
        return 0
    found = list(differences(told.before, told.after))
    print("\n".join(found) or "no column differs")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
