"""What is loaded, and by whom; which package may import which is in pyproject.toml's contracts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.glob("gisgd_ray/**/*.py")
}
# Usable without Ray and W&B: on a GPU machine with PyTorch alone, or in a notebook.
PLAIN = "errors randomness device theory config data networks schemes measures training results"
SCRIPTS = sorted(f"sweeps.{path.stem}" for path in ROOT.glob("sweeps/*.py"))


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


def below(packages: str) -> list[str]:
    """The modules of these packages."""
    roots = [f"gisgd_ray.{name}" for name in packages.split()]
    found = [m for m in sorted(MODULES) if any(m == r or m.startswith(f"{r}.") for r in roots)]
    assert len(found) > len(roots)
    return found


def test_neither_ray_nor_wandb_is_loaded_by_what_a_notebook_needs() -> None:
    brought = loaded(below(PLAIN), "ray wandb")
    assert set(map(tuple, brought.values())) == {()}


def test_help_and_bad_input_are_answered_before_anything_heavy_is_loaded() -> None:
    brought = loaded(SCRIPTS, "torch ray wandb")
    assert set(map(tuple, brought.values())) == {()}


def test_the_bounds_need_only_numpy() -> None:
    watched = "torch pydantic pandas scipy ray wandb altair rich gisgd_ray.config numpy"
    assert loaded(["gisgd_ray.theory.bounds"], watched) == {"gisgd_ray.theory.bounds": ["numpy"]}


def test_a_configuration_needs_no_torch() -> None:
    names = ["gisgd_ray", "gisgd_ray.errors", "gisgd_ray.config.trial"]
    assert loaded(names, "torch numpy pandas ray wandb") == {name: [] for name in names}


def test_what_tells_wandb_needs_no_torch() -> None:
    """Nor what reads results: ``make sync`` starts in a second, and not in seven."""
    names = ["gisgd_ray.tracking.run", "gisgd_ray.tracking.sync", "gisgd_ray.results.tables"]
    assert loaded(names, "torch scipy altair ray") == {name: [] for name in names}


@pytest.mark.parametrize("path", sorted(ROOT.glob("gisgd_ray/*/")), ids=lambda path: path.name)
def test_every_package_says_what_lives_there(path: Path) -> None:
    if path.name != "__pycache__":
        text = ast.get_docstring(ast.parse((path / "__init__.py").read_text(encoding="utf-8")))
        assert text is not None
        assert len(text.split()) > 20
