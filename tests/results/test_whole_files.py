"""Files get their place as a whole, and never through a link that lies in a folder of results."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import altair as alt
import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.figures.charts import save_charts
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.storage import Storage
from gisgd_ray.results.tables import require_writable, results_folder, row_of, write_tables
from gisgd_ray.results.whole_files import replace_file, require_no_links
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.mirror import Mirror
from tests.support.journals import add_point

LINKS = [
    ".lock",
    ".writable",
    "figures",
    "journal",
    "journal/a.jsonl",
    "steps",
    "wandb",
    "checkpoints",
    "checkpoints/0123456789ab",
    "ray/attempt-1",
    "report.html",
    "tables.md",
]


def everything(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_a_file_takes_the_place_of_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "a").symlink_to(outside)
    replace_file(tmp_path / "a", b"new")
    assert outside.read_text() == "mine"
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "outside"]


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    replace_file(path, b"1")
    assert path.read_bytes() == b"1"


def test_others_may_read_what_the_mask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "a", b"")
        add_point(Journal(tmp_path), "a", {"step": 1})
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "journal" / "a.jsonl"):
        assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", LINKS)
def test_a_folder_with_a_link_in_it_is_not_written_to(
    tmp_path: Path, name: str, dangling: bool
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "lr_batch"
    if not dangling and name.endswith((".jsonl", ".html", ".md", ".lock", ".writable")):
        outside.write_text("mine")
    elif not dangling:
        outside.mkdir()
        (outside / "0.partial").write_text("mine")
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(outside)
    before = everything(tmp_path)
    said = f"{folder / name} is a link, and nothing is written through a link in a folder of"
    calls: list[Callable[[], object]] = [
        lambda: Location.of(str(tmp_path), "lr_batch"),
        lambda: Location.of(str(tmp_path), "lr_batch", make=False),
        Mirror(folder, Storage(str(tmp_path / "bucket"))).pull,
    ]
    for call in calls:
        with pytest.raises(UserError, match=said):
            call()
    assert everything(tmp_path) == before


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match="is neither a file nor a folder; remove it"):
        results_folder(tmp_path)


def test_a_folder_behind_a_link_is_its_owners(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "lr_batch").mkdir(parents=True)
    (tmp_path / "results").symlink_to(tmp_path / "scratch")
    (tmp_path / "results" / "stochastic").symlink_to(tmp_path / "scratch" / "lr_batch")
    trial = TrialConfig()
    for name in ("lr_batch", "stochastic"):
        folder = results_folder(tmp_path / "results" / name)
        Journal(folder).add_row(trial.trial_id, row_of(trial, {"status": "finished"}))
        assert len(write_tables(folder, [trial]).trials) == 1
    assert (tmp_path / "scratch" / "lr_batch" / "trials.parquet").exists()


def test_links_that_wandb_makes_are_its_own(tmp_path: Path) -> None:
    run = tmp_path / "wandb" / "offline-run-1"
    run.mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("offline-run-1")
    assert results_folder(tmp_path) == tmp_path
    require_writable(tmp_path)


def test_a_link_that_appears_in_between_is_not_followed_either(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("mine")
    for name in ("journal/a.jsonl", "figures/x.svg", "figures/x.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(outside / "f")
    with pytest.raises(OSError, match="symbolic link"):
        add_point(Journal(tmp_path), "a", {"step": 1})
    save_charts({"x": alt.concat(alt.Chart().mark_point())}, tmp_path / "figures")
    assert (tmp_path / "figures" / "x.svg").read_text().startswith("<svg")
    assert (outside / "f").read_text() == "mine"


def test_what_links_lead_to_is_not_brought_to_a_bucket(tmp_path: Path) -> None:
    folder, bucket = tmp_path / "here", tmp_path / "bucket"
    (folder / "wandb" / "run-1").mkdir(parents=True)
    (tmp_path / "secret").write_text("mine")
    mirror = Mirror(folder, Storage(str(bucket)))
    with mirror.owned(take_over=False):
        (folder / "wandb" / "run-1" / "log").symlink_to(tmp_path / "secret")
        (folder / "a").write_text("1")
    assert everything(bucket) == {"a": b"1"}


def test_names_of_a_bucket_do_not_lead_out_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of objects may be anything, which a folder standing in for a bucket cannot show."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a").write_text("1")
    storage = Storage(str(tmp_path / "bucket"))
    sizes = {"../outside": 1, "steps/../../outside": 1, "a": 1}
    monkeypatch.setattr(storage, "sizes", lambda *_, **__: sizes)
    assert Mirror(tmp_path / "here", storage).pull() == 1
    assert everything(tmp_path / "here") == {"a": b"1"}


def test_two_writers_of_one_file_leave_one_of_them_whole(tmp_path: Path) -> None:
    contents = [bytes([i]) * 100_000 for i in range(8)]
    writers = [
        threading.Thread(target=replace_file, args=(tmp_path / "a", content))
        for content in contents
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_not_there_has_no_links(tmp_path: Path) -> None:
    require_no_links(tmp_path / "none")


@pytest.mark.parametrize("make", [True, False])
def test_a_name_that_is_too_long_is_told(tmp_path: Path, make: bool) -> None:
    out = str(tmp_path / ("x" * 300))
    with pytest.raises(UserError) as caught:
        Location.of(out, "lr_batch", make=make)
    assert str(caught.value) == (
        f"output folder {out}/lr_batch cannot be written (File name too long); choose another "
        "with --out"
    )
