"""The HTML page from small hand-made tables: what it says, and what it must never contain."""

import base64
import doctest
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gisgd_ray.claims.claim import Claim
from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.report import (
    page,
    page_cautions,
    page_curves,
    page_facts,
)
from gisgd_ray.report.page_facts import cost_facts
from gisgd_ray.results.columns import in_order, trial_columns
from gisgd_ray.results.row_check import is_setting
from gisgd_ray.results.tables import ResultTables, row_of
from tests.support.pages import (
    BATCH,
    EQ3,
    NAN,
    RATE,
    Document,
    cell,
    failed,
    finished,
    report_of,
    with_bounds,
    write,
)


def test_heading_says_what_it_is_and_how_it_ended(tmp_path: Path) -> None:
    text = Document(write(tmp_path, [finished("a")], planned=3)).text
    assert "Figure 6 How two things move the bound. 1 of 3 trials finished" in text
    assert "stopped early: 2 have not run to their end" in text
    assert "Laptop scale" in text
    assert "Eq. 3 lies above the measured gap in 1 of 1 trials, at the median 149 times" in text


def settings_told(text: str) -> dict[str, str]:
    """What the page's lists of settings say, by field."""
    return dict(re.findall(r"<dt>([a-z]+\.[\w.]+)</dt><dd>(.*?)</dd>", text))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scheme.name": "clipping"},
        {"scheme.name": "gmp", "model.name": "alexnet", "training.stop_loss": None},
        {"measurement.hessian_schedule.every": 5, "measurement.hessian_schedule.unit": "step"},
    ],
)
def test_columns_that_no_trial_fills_are_not_shown(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    """A table has all columns; its page is that of the columns that these trials have."""
    configs = [TrialConfig.model_validate(unflatten({**fields, "seed": i})) for i in range(2)]
    metrics = {k: v for k, v in with_bounds(finished("a")).items() if not is_setting(k)}
    rows = [
        row_of(config, metrics | {"trial_id": config.trial_id, "bound/lemma7": 28.0})
        for config in configs
    ]
    bare = write(tmp_path, rows, swept=["seed"])
    whole = pd.DataFrame(rows).reindex(columns=in_order([*rows[0], *trial_columns([1e-2, 1e-6])]))
    assert len(whole.columns) > len(rows[0]) + 50
    shown = write(tmp_path, whole.to_dict("records"), swept=["seed"])
    assert settings_told(shown) == settings_told(bare)
    assert settings_told(bare).keys() == configs[0].flat().keys() - {"replicas", "seed"}
    assert Document(shown).tables == Document(bare).tables


@pytest.mark.parametrize(
    ("statuses", "planned", "line"),
    [
        (["finished"] * 12, 12, "12 of 12 trials finished"),
        (
            ["finished", "diverged", "failed", "failed"],
            4,
            "1 of 4 trials finished, 1 diverged, 2 failed",
        ),
        ([], 2, "0 of 2 trials finished, stopped early: 2 have not run to their end"),
    ],
)
def test_status_line(statuses: list[str], planned: int, line: str) -> None:
    assert page.status_line(pd.DataFrame({"status": statuses}), planned) == line


def test_claims_come_with_test_evidence_and_verdict_in_words(tmp_path: Path) -> None:
    claims = [
        Claim("Small is flat.", "Spearman at 5 %", "ρ = -0.90 (n = 12, p = 1e-05)", "holds"),
        Claim("Big is sharp.", "another", "n = 3", "undecided"),
        Claim("All is well.", "third", "n = 4", "fails"),
        Claim("One is enough.", "fourth", "one seed", "single run"),
    ]
    text = write(tmp_path, [finished("a")], claims=claims)
    rows = next(t for t in Document(text).tables if t[0][0] == "The paper says")[1:]
    plain = [[c.replace("\N{NO-BREAK SPACE}", " ") for c in row] for row in rows]
    assert plain[0] == [
        "Small is flat.",
        "Spearman at 5 %",
        "ρ = −0.90 (n = 12, p = 1e−05)",
        "✓ holds",
    ]
    assert [row[3] for row in plain] == ["✓ holds", "? undecided", "✗ fails", "• single run"]
    marked = [a.get("class") for tag, a in Document(text).tags if tag == "span"]
    assert "verdict single-run" in marked
    assert "corrected together (Holm)" in Document(text).text
    assert "The paper’s claims: 1 hold, 1 undecided, 1 single runs, 1 fail." in Document(text).text
    own = Document(write(tmp_path, [finished("a")], claims=claims, own=True))
    assert "paper’s claims" not in own.text
    assert "paper says" not in own.text
    assert next(t for t in own.tables if t[0][0] == "Claim")[1][0] == "Small is flat."


def test_errors_and_every_other_text_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    rows = [
        finished("a", model__name=evil, outside_theorem=evil),
        failed("b", f"Traceback\n  {evil}\nValueError: {evil}", model__name="mlp"),
        finished("c", status="diverged", stop_reason=evil, **{EQ3: NAN}),
    ]
    rows[2]["bound/undefined_reason"] = evil
    text = write(
        tmp_path,
        rows,
        swept=["model.name"],
        item=evil,
        name=evil,
        description=evil,
        facts={"scale": evil, "command": evil, evil: evil},
        claims=[Claim(evil, evil, evil, "holds")],
    )
    document = Document(text)
    scripts = [tag for tag, _ in document.tags].count("script")
    assert scripts == text.count("<script") == 1  # the page's own
    assert document.text.count("<script>alert('x')</script>") >= 12
    tags = [tag for tag, _ in document.tags]
    assert tags.index("details") < tags.index("pre")
    assert not any("open" in attributes for tag, attributes in document.tags if tag == "details")


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    svg = tmp_path / "f.svg"
    svg.write_text('<svg xmlns="http://www.w3.org/2000/svg"><g id="a"/></svg>')
    text = write(tmp_path, [finished("a")], figures={"f": svg, "g": svg})
    document = Document(text)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in document.tags}
    assert "vegaEmbed" not in text  # there is nothing to draw
    for tag, attributes in document.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                local = (value or "").startswith(("data:", "#"))
                assert local or (tag == "a" and name == "href"), (tag, name, value)
    assert "url(" not in text
    assert "@import" not in text
    images = [attributes for tag, attributes in document.tags if tag == "img"]
    assert len(images) == 2
    for image in images:
        head, _, data = (image["src"] or "").partition(",")
        assert head == "data:image/svg+xml;base64"
        assert base64.b64decode(data) == svg.read_bytes()
        assert image["alt"] == "Figure 6. How two things move the bound."


def test_captions_are_by_figure(tmp_path: Path) -> None:
    svg = tmp_path / "f.svg"
    svg.write_text("<svg/>")
    rows = [finished("a"), failed("b", "x")]
    text = Document(
        write(tmp_path, rows, figures={"f": svg, "g": svg}, captions={"g": "Mine."})
    ).text
    assert (
        "Figure 6 as measured by this run, from 1 finished trials. For print: figures/f.pdf" in text
    )
    assert "Mine. For print: figures/g.pdf" in text


def test_no_trial_finished(tmp_path: Path) -> None:
    rows = [
        failed("a", "Traceback\nline\nRuntimeError: no memory"),
        failed("b", "the worker was lost"),
    ]
    document = Document(write(tmp_path, rows))
    assert "0 of 2 trials finished, 2 failed" in document.text
    assert "learning_rate=0.05 batch_size=20 (trial a ): RuntimeError: no memory" in document.text
    assert "(trial b ): the worker was lost" in document.text
    assert [tag for tag, _ in document.tags].count("details") == 1
    assert "No figure: no trial has finished." in document.text
    assert "None could be tested: no trial has finished." in document.text
    hrefs = {attributes.get("href") or "" for _, attributes in document.tags}
    anchors = {f"#{attributes.get('id')}" for _, attributes in document.tags}
    assert {"#care", "#failed-a", "#failed-b"} == {h for h in hrefs if h.startswith("#")}
    assert {"#care", "#failed-a", "#failed-b"} <= anchors


def test_no_trial_at_all(tmp_path: Path) -> None:
    text = Document(write(tmp_path, [], planned=4)).text
    assert "0 of 4 trials finished, stopped early: 4 have not run" in text
    assert "No trial has ended yet." in text


def test_diverged_trials_are_listed_with_their_reason(tmp_path: Path) -> None:
    rows = [
        finished("a"),
        finished("b", status="diverged", stop_reason="batch loss 2e+06 at step 7"),
    ]
    text = write(tmp_path, rows)
    assert cell(text, 1, "status") == "diverged batch loss 2e+06 at step 7"
    assert "learning_rate=0.05 batch_size=20: batch loss 2e+06 at step 7" in Document(text).text


def test_a_remark_on_a_bound_is_told(tmp_path: Path) -> None:
    remark = "the dispersion is <0>, at every step"
    rows = [finished("a", seed=1, **{"bound/remark": remark}), finished("b", seed=2)]
    text = write(tmp_path, rows, swept=["seed"])
    told = " ".join(Document(text).text.split())
    assert f"Remarks on bounds seed=1: {remark}" in told
    assert "Remarks on bounds" not in write(tmp_path, rows[1:], swept=["seed"])


def test_an_absent_neu_bound_is_told_and_a_present_one_defined(tmp_path: Path) -> None:
    absent = "No trial has Lemma 2’s trajectory term beside ours."
    assert absent in Document(write(tmp_path, [finished("a")])).text
    present = Document(
        write(tmp_path, [finished("a", **{"term/lemma2_trajectory@0.01": 99.0})])
    ).text
    assert absent not in present
    assert "The trajectory term of Neu et al. (2021, Theorem 1)" in present


def test_a_text_that_differs_in_every_trial_is_cut_short(tmp_path: Path) -> None:
    rows = [with_bounds(finished(str(i)), sensitivity=True) for i in range(5)]
    for i, row in enumerate(rows):
        row["measure/sensitivity_interpolation"] = f"linear in t between {i + 2} points"
    text = Document(write(tmp_path, rows)).text
    assert "between 4 points; … (5 values)" in text


def test_configuration_tells_swept_from_shared_from_differing() -> None:
    rows = [
        finished("a"),
        finished("b", training__learning_rate=0.1, seed=1, training__stop_loss=1e-3),
        finished("c", model__name="alexnet", model__width=None, training__stop_loss=1e-4),
    ]
    rows[0]["training.stop_loss"] = 1e-3
    found = page_facts.configuration(pd.DataFrame(rows), ["model.name", RATE])
    assert found.swept == {"model.name": "mlp, alexnet", RATE: "0.05, 0.1", "seed": "0, 1"}
    assert found.differing == {"training.stop_loss": "0.001, 0.0001"}
    assert found.shared == {
        "data.dataset": "mnist5k",
        "model.width": "512",
        BATCH: "20",
        "measurement.noise_stds": "[0.01, 1e-06]",
    }


def test_many_values_are_a_range() -> None:
    rows = [finished(str(i), training__learning_rate=0.1 + i) for i in range(9)]
    found = page_facts.configuration(pd.DataFrame(rows), [RATE])
    assert found.swept[RATE] == "9 values, 0.1 to 8.1"


def test_facts_are_per_model_and_dataset_where_there_are_several(tmp_path: Path) -> None:
    other = finished("b", model__name="alexnet", data__dataset="cifar10", num_samples=50_000)
    other["data/normalization_mean"] = [0.4914, 0.4822, 0.4465]
    text = Document(write(tmp_path, [finished("a"), other], facts={"Ray": "2 CPUs"})).text
    assert "training samples n 4,000 (mlp on mnist5k); 50,000 (alexnet on cifar10)" in text
    assert "0.1316 (mlp on mnist5k); 0.4914, 0.4822, 0.4465 (alexnet on cifar10)" in text
    assert "Ray 2 CPUs" in text
    assert re.search(r"Python 3\.\d+\.\d+; torch \d.*; ray \d.*; numpy \d", text)


def test_the_machine_stays_out_of_the_page(tmp_path: Path) -> None:
    error = (
        "\x1b[36mray::T.train()\x1b[39m (pid=7, ip=192.0.2.2, repr=<gisgd_ray.T object at 0x7f>)\n"
        '  File "/home/ada/env/lib/python3.11/site-packages/ray/tune/x.py", line 3, in f\n'
        '  File "/srv/checkout/gisgd_ray/measures/curvature.py", line 9, in g\n'
        "FileNotFoundError: [Errno 2] No such file: '/mnt/store/data.npz', see https://a.b/c/d 3/4"
    )
    text = write(tmp_path, [finished("a"), failed("b", error)])
    for private in ("ada", "/srv", "/mnt", "192.0.2.2", "secret-host", str(tmp_path), "\x1b"):
        assert private not in text.replace("load", ""), private
    plain = Document(text).text
    assert 'File "…/ray/tune/x.py", line 3, in f' in plain
    assert 'File "…/gisgd_ray/measures/curvature.py", line 9' in plain
    assert "No such file: '…/data.npz', see https://a.b/c/d 3/4" in plain
    assert "ray::T.train() (pid=7, repr=<gisgd_ray.T object at 0x7f>)" in plain


def test_a_broken_character_does_not_cost_the_page(tmp_path: Path) -> None:
    row = failed("a", "x")
    trials = pd.DataFrame([row])
    trials["error"] = trials["error"].astype(object)
    trials.loc[0, "error"] = "bad \ud800 \x00 byte"

    class Tables(ResultTables):
        @property
        def trials(self) -> pd.DataFrame:
            return trials

    report = report_of(Tables(tmp_path))
    page.write_page(report, {})
    assert "bad \\ud800  byte" in report.page.read_text(encoding="utf-8")


def test_the_page_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")

    def interrupted(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt(f"{self} {target}")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, [finished("a")])
    assert (tmp_path / "report.html").read_text() == "old"
    write(tmp_path, [finished("a")])
    assert (tmp_path / "report.html").read_text() != "old"
    assert not list(tmp_path.glob("*.partial"))


def test_same_tables_same_page_but_for_the_date(tmp_path: Path) -> None:
    date = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    texts = [write(tmp_path, [finished("a"), failed("b", "x")]) for _ in range(2)]
    assert date.search(texts[0])
    assert date.sub("", texts[0]) == date.sub("", texts[1])


def test_versions_are_those_that_made_the_numbers(tmp_path: Path) -> None:
    given = {"torch": "9.9", "gisgd-ray": "0, commit abc"}
    text = Document(write(tmp_path, [finished("a")], versions=given)).text
    assert "torch 9.9; gisgd-ray 0, commit abc" in text


def test_what_was_run_names_seeds_command_and_cost(tmp_path: Path) -> None:
    times = {"time/training_s": 5400.0, "time/measuring_s": 1800.0, "device": "cuda:0"}
    took = {"resources/cpus": 2, "resources/gpus": 0.25}
    more = {"resources/cpus": 4, "resources/gpus": 0.5}  # after it ran out of memory
    rows = [finished("a", **times, **took), finished("b", seed=7, **times, **more)]
    facts = {
        "command": "python /home/ada/gisgd/sweeps/lr_batch.py --out /home/ada/out --seeds 2",
        "resources": "4 CPUs and 0.5 of a GPU for each trial: found by trying",
    }
    rows.append(failed("c", "x"))
    text = Document(write(tmp_path, rows, facts=facts, price_per_hour=0.5)).text
    assert "python sweeps/lr_batch.py --out out --seeds 2" in text
    assert "trial hours 4.00 h; of 2 of 3 trials, without Ray" in text
    assert "core hours 12.0 h GPU hours 1.50 h cost" in text
    assert "cost 2.00, at 0.5 for an hour of a trial" in text
    assert "seeds 0, 7" in text
    assert "ada" not in text.replace("loada", "")


def test_cost_says_what_is_not_known() -> None:
    times = {"time/training_s": [3600.0], "time/measuring_s": [NAN], "device": ["cuda"]}
    assert cost_facts(pd.DataFrame({"status": ["failed"]})) == {}
    found = cost_facts(pd.DataFrame(times))
    assert found["trial hours"].startswith("1.00 h, without")
    assert (
        found["core hours"]
        == found["GPU hours"]
        == ("not known: what a trial took is not recorded")
    )
    assert "cost" not in found
    cpu = cost_facts(pd.DataFrame(times | {"device": ["cpu"], "resources/cpus": [4]}))
    assert cpu["core hours"] == "4.00 h"
    assert cpu["GPU hours"] == "0: no trial ran on a GPU"
    several = {"time/training_s": [3600.0] * 3, "time/measuring_s": [0.0] * 3}
    some = cost_facts(pd.DataFrame(several | {"resources/cpus": [2, None, 3]}))
    assert some["core hours"] == "5.00 h, and what 1 trial more took is not known"


def test_every_curve_has_its_panel_with_an_axis_that_fits_its_values() -> None:
    names = {"train/loss": "loss", "test/loss": "loss", "test/accuracy": "accuracy", "R": "R"}
    columns = [page_curves.Column(name, name, panel) for name, panel in names.items()]
    y = [[9.0, None, 0.2], [[0, 40], [0.5, 0.25]], None, [1.0, 2.0, 30.0]]
    trials = [
        {"id": "a", "x": [0, 20, 40], "y": y},
        {"id": "b", "x": [0], "y": [[1], None, [1], [1]]},
    ]
    shown = page_curves.panels(page_curves.Curves(columns, trials, 3, 0, 0))
    assert [(each["name"], each["places"]) for each in shown] == [
        ("loss", [0, 1]),
        ("accuracy", [2]),
        ("R", [3]),
    ]
    for each, scale, title in zip(shown, ("log", None, None), ("", "%", ""), strict=True):
        for key, colours in (("single", [names_of(each, names)]), ("several", [[""]])):
            (panel,) = each[key]["concat"]
            assert list(each[key]["datasets"].values()) == [[]]
            (line,) = (part for part in panel["layer"] if part["mark"]["type"] == "line")
            assert [line["encoding"]["stroke"]["scale"]["domain"]] == colours
            assert line["encoding"]["y"]["scale"].get("type") == scale
            assert (line["encoding"]["x"]["title"], line["encoding"]["y"]["title"]) == (
                "step",
                title,
            )


def names_of(panel: dict[str, Any], names: dict[str, str]) -> list[str]:
    """Those of the panel's curves."""
    return [list(names)[place] for place in panel["places"]]


def test_order_of_the_page(tmp_path: Path) -> None:
    text = write(tmp_path, [finished("a")])
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Ours against Neu et al.",
        "The figure",
        "The paper’s claims",
        "The bounds, trial by trial",
        "Curves along training",
        "To be read with care",
        "What the numbers mean",
        "What was run",
    ]


def test_docstring_examples() -> None:
    for module in (page, page_cautions, page_curves, page_facts):
        assert doctest.testmod(module).failed == 0
