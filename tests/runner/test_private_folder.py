"""The folder of a Ray that a process starts for itself."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gisgd_ray.errors import UserError
from gisgd_ray.runner.private_folder import (
    LONGEST,
    TOKEN,
    make_private_folder,
    remove_private_folder,
)

MINE = f"gisgd-{os.geteuid()}"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files with a short path."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def tmpdir_(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(short))
    return short


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_open_to_this_user_alone_and_holds_a_token_of_its_own(tmpdir_: Path) -> None:
    before = os.umask(0)
    try:
        first, second = make_private_folder(), make_private_folder()
    finally:
        os.umask(before)
    assert first.parent == second.parent == tmpdir_ / MINE
    assert [mode(path) for path in (first.parent, first, first / TOKEN)] == [0o700, 0o700, 0o600]
    tokens = [(folder / TOKEN).read_text() for folder in (first, second)]
    assert len(set(tokens)) == 2
    assert all(len(token) == 64 for token in tokens)
    (first / "session" / "logs").mkdir(parents=True)
    remove_private_folder(first)
    remove_private_folder(second)
    assert list((tmpdir_ / MINE).iterdir()) == []


def test_what_a_killed_process_has_left_is_removed_and_a_living_ones_kept(tmpdir_: Path) -> None:
    program = (
        "import sys, time\nfrom gisgd_ray.runner.private_folder import make_private_folder\n"
        "print(make_private_folder(), flush=True)\ntime.sleep(600)"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmpdir_)},
        )
        for _ in range(2)
    ]
    folders = [Path(other.stdout.readline().strip()) for other in others if other.stdout]
    assert all(folder.is_dir() for folder in folders)
    others[0].kill()
    others[0].communicate()
    mine = make_private_folder()
    assert not folders[0].exists()
    assert folders[1].is_dir()
    others[1].kill()
    others[1].communicate()
    remove_private_folder(mine)


@pytest.mark.parametrize("squatted", ["a link", "a file", "an open folder"])
def test_what_another_has_put_into_its_place_is_not_used(
    squatted: str, tmpdir_: Path, tmp_path: Path
) -> None:
    place = tmpdir_ / MINE
    if squatted == "a link":
        tmp_path.chmod(0o700)
        place.symlink_to(tmp_path)
    elif squatted == "a file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o777)
    before = sorted(tmp_path.iterdir())
    folder = make_private_folder()
    assert folder.parent.parent != tmpdir_
    assert mode(folder) == mode(folder.parent) == 0o700
    remove_private_folder(folder)
    assert sorted(tmp_path.iterdir()) == before


def test_a_long_path_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("l" * 70)
    long.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(long))
    folder = make_private_folder()
    assert len(str(folder)) <= LONGEST
    assert list(long.iterdir()) == []
    remove_private_folder(folder)


def test_without_any_place_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: os.mkdir("/proc/nowhere"))
    with pytest.raises(UserError, match=r"^there is no folder for what Ray keeps .*; set TMPDIR"):
        make_private_folder()
