"""The record of a sweep's launches: added to, brought up to date, and the versions it tells."""

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gisgd_ray.errors import UserError
from gisgd_ray.results.launch_record import (
    FILE,
    PACKAGES,
    LaunchRecord,
    folder_id,
    keep,
    keep_versions_of,
    last_record,
    versions,
)

FIRST = LaunchRecord(
    sweep="lr_batch",
    script="/home/ada/sweeps/lr_batch.py",
    begun="2026-01-02T03:04:05.678+00:00",
    swept=["training.learning_rate"],
    planned=["a", "b"],
    facts={"scale": "laptop"},
    versions={"torch": "2.6", "ray": "2.50"},
)


def later(day: int, **versions: str) -> LaunchRecord:
    return replace(FIRST, begun=f"2026-01-{day:02d}T00:00:00+00:00", versions=versions)


def kept(folder: Path, *records: LaunchRecord) -> LaunchRecord:
    """The last record once all these are kept."""
    for record in records:
        keep(folder, record)
    last = last_record(folder)
    assert last is not None
    return last


def test_a_folder_without_launches_has_no_record(tmp_path: Path) -> None:
    assert last_record(tmp_path) is None


def test_a_record_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    assert kept(tmp_path, FIRST) == FIRST


def test_a_launch_is_brought_up_to_date_and_the_next_one_appended(tmp_path: Path) -> None:
    ended = replace(FIRST, seconds=12.5, facts={"scale": "laptop", "resources": "1 CPU"})
    assert kept(tmp_path, FIRST, ended) == ended
    second = later(3, **FIRST.versions)
    assert kept(tmp_path, second) == second
    launches = json.loads((tmp_path / FILE).read_bytes())["launches"]
    assert [launch["seconds"] for launch in launches] == [12.5, None]


def test_versions_of_earlier_launches_are_told_once_where_they_differ(tmp_path: Path) -> None:
    records = [
        later(2, torch="2.4", ray="2.50"),
        later(3, torch="2.5", ray="2.50"),
        later(4, torch="2.4", ray="2.50"),
        later(5, torch="2.6", ray="2.50"),
    ]
    last = kept(tmp_path, *records)
    assert last.versions == {"torch": "2.6", "ray": "2.50"}
    assert last.earlier == {"torch": ["2.4", "2.5"]}


def test_a_launch_that_ran_nothing_tells_the_versions_of_the_one_that_did(tmp_path: Path) -> None:
    last = kept(tmp_path, later(2, torch="2.4"), later(3, torch="2.5"), later(4))
    assert (last.begun, last.versions) == (later(4).begun, {"torch": "2.5"})
    assert last.earlier == {"torch": ["2.4"]}


def test_where_no_launch_ran_anything_there_are_no_versions(tmp_path: Path) -> None:
    last = kept(tmp_path, later(2), later(3))
    assert (last.versions, last.earlier) == ({}, {})


def test_trials_of_a_version_without_records_do_not_pass_for_this_ones(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "a.jsonl").touch()
    record = replace(FIRST, versions={"gisgd-ray": "0.2"})
    assert kept(tmp_path, record, record).earlier == {
        "gisgd-ray": ["a version that left no record"]
    }
    assert kept(tmp_path, later(3)).versions == {"gisgd-ray": "0.2"}


def test_what_made_trials_taken_from_elsewhere_is_told(tmp_path: Path) -> None:
    theirs, mine, old = tmp_path / "theirs", tmp_path / "mine", tmp_path / "old"
    for folder in (theirs, mine, old):
        folder.mkdir()
    kept(theirs, later(2, torch="2.4"), later(3, torch="2.5"), later(4))
    for _ in range(2):  # a second time, with --resume
        keep_versions_of(theirs, mine, sweep="lr_batch")
    last = kept(mine, later(5, torch="2.6"))
    assert (last.versions, last.earlier) == ({"torch": "2.6"}, {"torch": ["2.4", "2.5"]})
    assert len(json.loads((mine / "launches.json").read_text())["launches"]) == 3
    keep_versions_of(old, mine, sweep="lr_batch")
    last = kept(mine, later(5, torch="2.6"))
    assert last.earlier["gisgd-ray"] == ["a version that left no record"]


def test_a_folder_gets_an_id_with_its_first_launch_and_keeps_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        assert folder_id(folder) is None
        keep(folder, FIRST)
    made = folder_id(one)
    assert made is not None
    assert re.fullmatch("[0-9a-f]{12}", made)
    assert folder_id(other) != made
    for again in (replace(FIRST, seconds=2.0), later(3)):
        keep(one, again)
        keep_versions_of(other, one, sweep="lr_batch")
        assert folder_id(one) == made


def test_a_folder_of_an_earlier_version_gets_its_id_at_the_next_launch(tmp_path: Path) -> None:
    kept(tmp_path, FIRST)
    content = json.loads((tmp_path / FILE).read_text())
    del content["id"]
    (tmp_path / FILE).write_text(json.dumps(content))
    assert folder_id(tmp_path) is None
    assert kept(tmp_path, later(3)).begun == later(3).begun
    assert folder_id(tmp_path) is not None
    assert len(json.loads((tmp_path / FILE).read_text())["launches"]) == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"format": 1, "laun',
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": "1", "launches": []}',
        '{"format": 1, "launches": 5}',
        '{"format": 1, "id": "../../elsewhere", "launches": []}',
        '{"format": 1, "id": 123456789012, "launches": []}',
        '{"format": 1, "launches": ["a"]}',
        '{"format": 1, "launches": [{"begun": "x"}]}',
        "\ud800",
        "[" * 100_000,
        *(
            json.dumps({"format": 1, "launches": [dataclasses.asdict(FIRST) | change]})
            for change in (
                {"planned": None},
                {"planned": "all"},
                {"planned": [1]},
                {"swept": None},
                {"facts": {"scale": 5}},
                {"facts": []},
                {"versions": "2.6"},
                {"seconds": "12"},
                {"seconds": True},
                {"sweep": None},
                {"begun": 5},
                {"news": 1},
            )
        ),
    ],
)
def test_a_damaged_record_is_told_and_left_alone(tmp_path: Path, content: str) -> None:
    damaged = content.encode(errors="surrogatepass")
    (tmp_path / FILE).write_bytes(damaged)
    with pytest.raises(UserError, match=r"launches\.json is damaged \(.+\); remove it$"):
        last_record(tmp_path)
    with pytest.raises(UserError, match="remove it"):
        keep_versions_of(tmp_path, tmp_path / "other", sweep="lr_batch")
    assert (tmp_path / FILE).read_bytes() == damaged


def test_a_launch_is_not_added_to_a_damaged_record(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"format": 1, "launches": ["a"]}')
    with pytest.raises(UserError, match="damaged"):
        keep(tmp_path, FIRST)


def test_a_later_format_is_told_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"format": 2, "runs": []}')
    with pytest.raises(UserError, match=r"later version of gisgd-ray \(format 2, known here: 1\)"):
        last_record(tmp_path)
    with pytest.raises(UserError, match="later version"):
        keep(tmp_path, FIRST)
    assert json.loads((tmp_path / FILE).read_bytes())["format"] == 2


def test_versions_name_all_that_makes_the_numbers() -> None:
    assert list(versions()) == ["Python", *PACKAGES, "gisgd-ray"]
    assert all(versions().values())
