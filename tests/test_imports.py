"""What each module may import: a notebook needs no Ray, the bounds need nothing but NumPy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("gisgd_ray/**/*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}
# Usable without Ray and W&B: on a GPU machine with PyTorch alone, or in a notebook.
PLAIN = "config errors randomness bounds losses data datasets models schemes measures terms "
PLAIN += "own_data interpolated "
PLAIN += "training checkpoint checkpoints storage state stepping lockstep measuring evaluation "
PLAIN += "device consistency memory sensitivity_terms teacher estimate packing whole_files"
SWEEPS = "sweeps.lr_batch sweeps.trajectory sweeps.bound_verification sweeps.stochastic "
SWEEPS += "sweeps.linear_relu"
RAY_EDGE = "search_space trainable tuning cluster running_cluster cluster_watch handover"
RAY_ALLOWED = {f"gisgd_ray.{name}" for name in RAY_EDGE.split()}


def plain_modules() -> list[str]:
    """The modules of PLAIN with all that lies in their packages."""
    roots = [f"gisgd_ray.{name}" for name in PLAIN.split()]
    return [m for m in MODULES if any(m == r or m.startswith(f"{r}.") for r in roots)]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return names


def importers(package: str) -> set[str]:
    """The modules of gisgd_ray that import a package."""
    return {
        module
        for module, path in MODULES.items()
        if any(name == package or name.startswith(f"{package}.") for name in imported(path))
    }


def loaded(modules: list[str], watched: str) -> dict[str, list[str]]:
    """In a fresh Python: which of the watched packages each module, imported in turn, brings."""
    code = (
        "import importlib, json, sys\n"
        "brought, seen = {}, set()\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
        f"    new = {{n for n in {watched.split()!r} if n in sys.modules}} - seen\n"
        "    seen |= new\n"
        "    brought[module] = sorted(new)\n"
        "print('\\n' + json.dumps(brought))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    brought: dict[str, list[str]] = ast.literal_eval(done.stdout.splitlines()[-1])
    return brought


def test_the_modules_named_here_exist() -> None:
    assert {f"gisgd_ray.{name}" for name in PLAIN.split()} | RAY_ALLOWED <= set(MODULES)
    assert len(plain_modules()) > len(PLAIN.split())


def test_neither_ray_nor_wandb_is_loaded_by_what_a_notebook_needs() -> None:
    """Nor Ray by a sweep's script: --help, --dry-run and bad input are answered before it loads."""
    scripts = SWEEPS.split()
    brought = loaded([*plain_modules(), *scripts], "ray wandb")
    # What an earlier one has brought counts no more; scripts come last, and bring W&B once.
    assert brought.pop(scripts[0]) == ["wandb"]
    assert set(map(tuple, brought.values())) == {()}


def test_the_bounds_need_only_numpy() -> None:
    watched = "torch pydantic pandas scipy ray wandb matplotlib rich gisgd_ray.config numpy"
    assert loaded(["gisgd_ray.bounds"], watched) == {"gisgd_ray.bounds": ["numpy"]}


def test_a_configuration_needs_no_torch() -> None:
    watched = "torch numpy pandas ray wandb"
    names = ["gisgd_ray", "gisgd_ray.errors", "gisgd_ray.config"]
    assert loaded(names, watched) == {name: [] for name in names}


def test_ray_is_imported_where_trials_are_run_only() -> None:
    assert importers("ray") == RAY_ALLOWED


def test_wandb_is_imported_in_reporting_only() -> None:
    assert all(module.startswith("gisgd_ray.reporting.") for module in importers("wandb"))
    assert importers("wandb")


def test_a_notebooks_backend_that_is_not_installed_here_is_ignored() -> None:
    """A notebook hands it down to ``!python ...``, in which nothing is drawn on a screen."""
    done = subprocess.run(
        [sys.executable, "-c", "import sweeps.lr_batch, matplotlib.pyplot"],
        cwd=ROOT,
        env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Which a script would come too late for that loads matplotlib first.
    for script in ROOT.glob("sweeps/*.py"):
        assert not any(name.startswith("matplotlib") for name in imported(script)), script


def test_the_package_imports_neither_sweeps_nor_tests() -> None:
    assert not importers("sweeps") | importers("tests") | importers("pytest")


@pytest.mark.parametrize("package", ["measures", "schemes"])
def test_layers_below_know_nothing_of_those_above(package: str) -> None:
    above = {
        f"gisgd_ray.{name}" for name in ("training", "trainable", "launch", "sweep", "results")
    }
    for module in (m for m in MODULES if m.startswith(f"gisgd_ray.{package}")):
        assert not imported(MODULES[module]) & above, module


@pytest.mark.parametrize(
    "path",
    [*FILES, *sorted(ROOT.glob("sweeps/**/*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400
