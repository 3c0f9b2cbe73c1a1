"""``make setup`` where an environment is there already, of whatever kind: it is kept, or made anew.

The Makefile is the real one; the package it installs is a stub that needs no network.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "stub"
version = "1"
[project.optional-dependencies]
dev = []
"""
BACKEND = """
import zipfile
def build_editable(folder, settings=None, metadata=None):
    names = {"METADATA": "Metadata-Version: 2.1\\nName: stub\\nVersion: 1\\nProvides-Extra: dev\\n",
             "WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
             "RECORD": ""}
    with zipfile.ZipFile(f"{folder}/stub-1-py3-none-any.whl", "w") as wheel:
        for name, text in names.items():
            wheel.writestr(f"stub-1.dist-info/{name}", text)
    return "stub-1-py3-none-any.whl"
"""

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text("")
    (tmp_path / "backend.py").write_text(BACKEND)
    return tmp_path


def setup(checkout: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    # By itself, though `make test` may have started these tests.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "setup", f"PYTHON={sys._base_executable}"],  # type: ignore[attr-defined]
        cwd=checkout,
        env={**outside, "PIP_NO_INDEX": "1", **environment},
        capture_output=True,
        text=True,
    )


def assert_set_up(checkout: Path) -> None:
    done = setup(checkout)
    assert done.returncode == 0, done.stderr
    assert list(checkout.glob(".venv/lib/*/site-packages/stub-1.dist-info/RECORD"))
    assert setup(checkout).stdout == "make: Nothing to be done for 'setup'.\n"


def venv(checkout: Path, *options: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", *options, checkout / ".venv"], check=True)


def without_pip(checkout: Path) -> None:
    """As Debian's Python leaves it where its package python3-venv is missing."""
    venv(checkout, "--without-pip")


def of_a_python_that_is_gone(checkout: Path) -> None:
    venv(checkout, "--without-pip")
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to(checkout / "gone/python3")


def a_file(checkout: Path) -> None:
    (checkout / ".venv").write_text("")


def of_an_older_python(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").write_text("#!/bin/sh\nexit 1\n")  # what the question gets
    (checkout / ".venv/bin/python").chmod(0o755)


@pytest.mark.parametrize(
    "left", [without_pip, of_a_python_that_is_gone, a_file, of_an_older_python]
)
def test_an_environment_that_is_broken_is_made_anew(
    left: Callable[[Path], None], checkout: Path
) -> None:
    left(checkout)
    assert_set_up(checkout)


def test_setting_up_that_was_cut_off_begins_anew_and_a_refusal_does_not(checkout: Path) -> None:
    """Killed, pip may leave packages half installed, which it takes for whole the next time."""
    python = checkout / ".venv/bin/python"
    mark = checkout / ".venv/kept"
    backend = (checkout / "backend.py").read_text()
    # pip says no by itself: what is there is sound, and stays.
    (checkout / "backend.py").write_text("def build_editable(*_): raise OSError('no network')")
    done = setup(checkout)
    assert done.returncode != 0
    assert "no network" in done.stderr + done.stdout
    mark.touch()
    # Now the whole of it is killed, as by a machine that goes down.
    (checkout / "backend.py").write_text("import os\ndef build_editable(*_): os.killpg(0, 9)")
    killed = subprocess.Popen(
        ["make", "setup", f"PYTHON={sys._base_executable}"],  # type: ignore[attr-defined]
        cwd=checkout,
        env={**os.environ, "PIP_NO_INDEX": "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert killed.wait() == -9
    assert mark.exists()
    assert python.exists()
    (checkout / "backend.py").write_text(backend)
    assert_set_up(checkout)
    assert not mark.exists()
