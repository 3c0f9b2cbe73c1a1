"""The versions on the page: the commit is that of the checkout that the code is tracked in."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from gisgd_ray.results import launch_record
from tests.support.pages import Document, finished, write


@pytest.mark.parametrize(
    "fault",
    [
        FileNotFoundError("git"),
        subprocess.TimeoutExpired("git", 10),
        subprocess.CalledProcessError(128, "git"),
    ],
)
def test_git_never_costs_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(subprocess, "run", run)
    assert (
        "commit" not in Document(write(tmp_path, [finished("a")])).text.partition("gisgd-ray ")[2]
    )


def test_commit_is_that_of_the_checkout_the_code_is_tracked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gisgd_ray"
    package.mkdir()
    (package / "__init__.py").touch()
    inside = package / "results/launch_record.py"
    monkeypatch.setattr(launch_record, "__file__", str(inside))

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("init", "-q")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-qm", "a repository that merely contains the package")
    assert launch_record._commit() is None
    git("add", ".")
    git("commit", "-qm", "now with the package")
    commit = git("rev-parse", "HEAD")[:12]
    assert launch_record._commit() == commit
    (package / "__init__.py").write_text("changed")
    assert launch_record._commit() == f"{commit} with uncommitted changes"
