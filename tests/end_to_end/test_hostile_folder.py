"""A folder of results that somebody has written by hand: data, of which at most a page is made."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gisgd_ray.results.launch_record import LaunchRecord, keep
from gisgd_ray.results.tables import row_of
from gisgd_ray.runner.report import main
from sweeps.lr_batch import SWEEP
from tests.support.pages import Document
from tests.support.sweep_runs import measured, plan_of

EVIL = r"</script><img src=x onerror=alert(1)>' \" {{ 7*7 }} {% raw %} %{x} & ../../x"
TAGS = {"script", "img", "iframe", "object", "embed", "link", "form", "base"}


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # The megabyte that draws the charts is of no interest here.
        patch.setattr("gisgd_ray.report.page.library", lambda: "")
        yield


def hostile(folder: Path, changes: dict[str, Any], text: str = EVIL) -> Path:
    """Figure 6's trials with this text wherever the page may show one; and these columns."""
    folder.mkdir(parents=True)
    trials = plan_of(SWEEP, "laptop").trials
    summary, points = measured(trials[0])
    rows = [row_of(trial, {**summary, "device": text, "hostname": text}) for trial in trials]
    rows[1] |= {"status": "failed", "error": f"Traceback\n{text}"}
    rows[2] |= {"status": "diverged", "stop_reason": text}
    rows[3] |= {"status": text}
    rows[4] |= {"outside_theorem": text, "bound/undefined_reason": text}
    rows[5] |= {"trial_id": f"../../{text}"}
    more = {f"bound/{text}": 1.0, f"bound/a@{text}": 1.0, f"training.{text}": text}
    frame = pd.DataFrame(rows).assign(**more)
    frame.assign(**{k: [v] * len(frame) for k, v in changes.items()}).to_parquet(
        folder / "trials.parquet"
    )
    history = [{"trial_id": row["trial_id"], **point} for row in rows for point in points]
    more = {f"term/theorem2_trajectory@{at}": 1.0 for at in (text, "-1", "nan")}
    pd.DataFrame(history).assign(**more).to_parquet(folder / "history.parquet")
    record = LaunchRecord(
        sweep="lr_batch",
        script=text,
        begun=text,
        swept=[text, "training.learning_rate"],
        planned=[text],
        facts={"scale": text, "command": text, "resources": text, text: text},
        versions={text: text},
    )
    keep(folder, record)
    return folder


def test_the_page_of_a_hostile_folder_is_text(tmp_path: Path) -> None:
    pages = []
    for name, text in (("plain", "harmless"), ("evil", EVIL)):
        folder = hostile(tmp_path / name / "lr_batch", {}, text)
        assert main([str(folder)]) == 0
        pages.append((folder / "report.html").read_text(encoding="utf-8"))
    documents = [Document(page) for page in pages]
    tags = [
        [(tag, set(attributes)) for tag, attributes in document.tags if tag in TAGS]
        for document in documents
    ]
    assert tags[0] == tags[1]
    for tag, attributes in documents[1].tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not str(attributes.get("href", "")).lower().startswith(("javascript", "data"))
    assert documents[1].text.count("{{ 7*7 }}") >= 10
    assert pages[1].count("<script") == pages[0].count("<script")


@pytest.mark.parametrize(
    "changes",
    [
        {"model.name": EVIL, "data.dataset": EVIL, "scheme.name": EVIL, "seed": EVIL},
        {"model.name": r"$\frac{$"},
        {"training.learning_rate": EVIL},
        {"training.batch_size": None},
        {"measurement.noise_stds": EVIL},
        {"train/loss": EVIL},
        {"status": None},
        {"trial_id": None},
        {"trial_id": 5},
        {"steps": "many"},
        {"time/training_s": [1.0]},
        {"term/flatness_factor": True},
    ],
    ids=str,
)
def test_no_traceback_and_nothing_outside(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A page, or one sentence."""
    folder = hostile(tmp_path / "there" / "lr_batch", changes)
    status = main([str(folder)])
    said = capsys.readouterr().err
    if status:
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1
    else:
        assert "onerror=alert" in (folder / "report.html").read_text(encoding="utf-8")
    made = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    assert made == {tmp_path / "there", folder}


def test_files_in_it_are_neither_unpickled_nor_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "was run",))

    folder = hostile(tmp_path / "lr_batch", {})
    code = f"open({str(tmp_path / 'was run')!r}, 'w')\n"
    for name in ("lr_batch.py", "conftest.py", "sitecustomize.py", "sweeps/lr_batch.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    for name in ("ray/tuner.pkl", "ray/attempt-1/trainable.pkl", "checkpoints/a/000000000001.ckpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Evil()))
    table = pd.read_parquet(folder / "trials.parquet")
    table.attrs["evil"] = "1"
    table.to_parquet(folder / "trials.parquet")
    monkeypatch.chdir(folder)
    assert main([os.curdir]) == 0
    assert not (tmp_path / "was run").exists()
