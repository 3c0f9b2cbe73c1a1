"""The reproduction scoreboard: what it lists and counts, its links, and how it opens."""

import json
import os
import re
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

from gisgd_ray.claims.claim import Claim
from gisgd_ray.figures.tables import Row, Table
from gisgd_ray.report.contents import Report
from gisgd_ray.report.scoreboard import ITEMS, write_scoreboard
from tests.report.test_page_browser import BROWSER, COMMAND
from tests.support.pages import Document, failed, finished, report_of
from tests.support.tables import Tables

EVIL = "</td><script>alert(1)</script>"
VERDICTS = ("holds", "holds", "undecided", "fails")
CLAIMS = [Claim(f"claim {i}", "a test", "n = 12", v) for i, v in enumerate(VERDICTS)]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="468" height="187"><rect width="9"/></svg>'
ODD = "a b#c?d%41&e: ü;'+"
TABLE = Table("VGG16", ["accuracy (%)"] * 9, [Row(EVIL, ["70.10 ± 1.27"] * 9, frozenset({0}))])


def entry(folder: Path, name: str, item: str, **changes: Any) -> Report:
    """Two finished trials of three, with these claims, figures and so on."""
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<h1>the page</h1>")
    (folder / "f.svg").write_text(SVG)
    results = Tables(pd.DataFrame([finished("a"), finished("b")]))
    results.folder = folder
    given = {
        "claims": CLAIMS,
        "figures": {"f": folder / "f.svg"},
        "facts": {"scale": "laptop"},
        "planned": 3,
    }
    return report_of(results, name=name, item=item, **(given | changes))


def board(entries: list[Report], folder: Path, **more: Any) -> Document:
    path = write_scoreboard(entries, folder, **more)
    assert path == folder / "scoreboard.html"
    return Document(path.read_text(encoding="utf-8"))


def lines(document: Document) -> list[list[str]]:
    """The first table's cells, with single spaces."""
    return [[" ".join(cell.split()) for cell in row] for row in document.tables[0][1:]]


def links(document: Document) -> list[str]:
    return [str(a["href"]) for tag, a in document.tags if tag == "a"]


def test_every_item_of_the_paper_is_listed_once_and_missing_ones_with_their_command(
    tmp_path: Path,
) -> None:
    found = lines(board([entry(tmp_path / "lr_batch", "lr_batch", "Figure 6")], tmp_path))
    assert [row[0] for row in found] == [item.name for item in ITEMS]
    assert [row[0] for row in found] == [f"Figure {i}" for i in range(1, 10)] + [
        f"Table {i}" for i in range(1, 4)
    ]
    for item, row in zip(ITEMS, found, strict=True):
        assert row[1] == item.title
        if item.name != "Figure 6":
            assert row[2:] == [f"not run yet: python sweeps/{item.sweep}.py"]
    counts = "2 of 3 trials finished, stopped early: 1 have not run to their end; "
    counts += "scale: laptop (mlp on mnist5k)"
    assert found[5][2:] == [counts, "2 hold 1 undecided 1 fails"]


def test_the_sweeps_named_are_those_of_the_package() -> None:
    scripts = {path.stem for path in (Path(__file__).parents[2] / "sweeps").glob("[!_]*.py")}
    assert {item.sweep for item in ITEMS} == scripts


def test_a_sweep_of_two_figures_counts_its_claims_once(tmp_path: Path) -> None:
    both = entry(tmp_path / "clipping", "clipping", "Figures 4 and 9")
    both.trials["model.name"] = ["mlp", "alexnet"]
    entries = [both, entry(tmp_path / "lr_batch", "lr_batch", "Figure 6", claims=CLAIMS[:1])]
    document = board(entries, tmp_path)
    summary = "3 of 12 figures and tables have results; of 5 claims tested: 3 hold, 1 undecided"
    summary += ", 0 single runs"
    assert f"{summary}, 1 fails." in document.text
    found = {row[0]: row for row in lines(document)}
    for item in ("Figure 4", "Figure 9"):
        assert found[item][3] == "2 hold 1 undecided 1 fails (Figures 4 and 9 together)"
    assert found["Figure 6"][3] == "1 holds"


def test_a_table_counts_by_the_papers_networks_and_data_alone(tmp_path: Path) -> None:
    one = entry(tmp_path / "regularizers", "regularizers", "Tables 1-3")
    one.trials["scheme.variant"] = [None, "absolute"]
    document = board([one], tmp_path)
    assert "0 of 12 figures and tables have results; of 4 claims tested" in document.text
    found = {row[0]: row[2:] for row in lines(document)}
    for item in ("Table 1", "Table 2", "Table 3"):
        assert found[item] == [
            "not run yet: python sweeps/regularizers.py; at laptop scale, another network or data "
            "(mlp on mnist5k)"
        ]
    assert links(document).count("regularizers/report.html") == 4
    for network, data, counts in (
        ("vgg16", "mnist5k", 0),
        ("preactresnet18", "svhn", 1),  # Table 2
        ("vgg16", "cifar10", 2),  # Tables 1 and 3
    ):
        one.trials["model.name"], one.trials["data.dataset"] = network, data
        assert f"{counts} of 12 figures and tables" in board([one], tmp_path).text


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_figure_of_which_the_sweep_had_no_finished_trial_has_no_results(
    tmp_path: Path, status: str
) -> None:
    one = entry(tmp_path / "clipping", "clipping", "Figures 4 and 9")
    one.trials["model.name"] = ["mlp", "alexnet" if status == "failed" else "mlp"]
    one.trials["status"] = ["finished", status]
    document = board([one], tmp_path)
    assert "1 of 12 figures and tables have results" in document.text
    found = {row[0]: " ".join(row) for row in lines(document)}
    assert "2 hold" in found["Figure 4"]
    assert ("python sweeps/clipping.py" in found["Figure 9"]) == (status == "finished")


def test_a_sweep_of_which_nothing_finished_has_no_results(tmp_path: Path) -> None:
    one = entry(tmp_path / "lr_batch", "lr_batch", "Figure 6", claims=[], figures={}, facts={})
    one = replace(one, trials=pd.DataFrame([failed("a", "a fault")]))
    document = board([one], tmp_path)
    assert "0 of 12 figures and tables have results; of 0 claims tested" in document.text
    assert lines(document)[5][3] == "no claim tested"
    assert "scale: not recorded" in lines(document)[5][2]


def test_two_folders_of_a_sweep_are_told_apart(tmp_path: Path) -> None:
    entries = [entry(tmp_path / f / "lr_batch", "lr_batch", "Figure 6") for f in ("one", "two")]
    document = board(entries, tmp_path)
    found = [row[1] for row in lines(document) if row[0] == "Figure 6"]
    title = "Trajectory and flatness factor: learning rate and batch size"
    assert found == [f"{title} (one/lr_batch)", f"{title} (two/lr_batch)"]
    assert document.text.count("Figure 6 (one/lr_batch)") == 1
    assert len(lines(document)) == 13
    summary = "1 of 12 figures and tables have results; of 4 claims tested: 2 hold, 1 undecided"
    summary += ", 0 single runs"
    assert f"{summary}, 1 fails." in document.text


def test_a_claim_on_which_two_folders_differ_counts_apart(tmp_path: Path) -> None:
    other = [replace(CLAIMS[0], verdict="fails"), *CLAIMS[1:]]
    entries = [
        entry(tmp_path / "one" / "lr_batch", "lr_batch", "Figure 6"),
        entry(tmp_path / "two" / "lr_batch", "lr_batch", "Figure 6", claims=other),
    ]
    text = board(entries, tmp_path).text
    counts = "1 holds, 1 undecided, 0 single runs, 1 fails, 1 not the same in every folder."
    assert f"of 4 claims tested: {counts}" in text


def test_sections_are_in_the_papers_order(tmp_path: Path) -> None:
    named = {"mine": "My table", "regularizers": "Tables 1-3", "trajectory": "Figure 1"}
    entries = [entry(tmp_path / name, name, item) for name, item in named.items()]
    text = board(entries, tmp_path).text
    sections = text[text.index("the whole page") - 100 :]
    places = [sections.index(item) for item in ("Figure 1", "Tables 1-3", "My table")]
    assert places == sorted(places)


def test_a_sweep_that_is_not_the_papers_comes_last(tmp_path: Path) -> None:
    document = board([entry(tmp_path / "mine", "mine", "My table", tables=[TABLE])], tmp_path)
    assert lines(document)[-1][:2] == ["My table", "mine (not the paper’s)"]
    assert document.text.startswith("Reproduction scoreboard Reproduction scoreboard Wang & Mao")
    assert "0 of 12 figures" in document.text
    assert document.tables[1][1] == [EVIL, *["70.10 ± 1.27"] * 9]


def test_what_users_wrote_is_escaped(tmp_path: Path) -> None:
    claim = Claim(EVIL, EVIL, EVIL, "holds")
    folder = tmp_path / EVIL.replace("/", "\N{DIVISION SLASH}")
    changes = {"facts": {"scale": EVIL}, "claims": [claim], "tables": [TABLE]}
    one = entry(folder, EVIL, EVIL, **changes)
    two = replace(one, sweep=replace(one.sweep, name="lr_batch"))
    document = board([one, two], tmp_path, faults={tmp_path / "<b>": EVIL})
    assert not {"script", "b\\"} & {tag for tag, _ in document.tags}
    assert document.text.count("alert(1)") >= 10


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    document = board([entry(tmp_path / "lr_batch", "lr_batch", "Figure 6")], tmp_path)
    assert {tag for tag, _ in document.tags}.isdisjoint({"script", "link", "iframe"})
    sources = [str(a["src"]) for tag, a in document.tags if "src" in a]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/svg+xml;base64,")


@pytest.mark.parametrize("name", ["plain", ODD, "http:", "..x", os.fsdecode(b"\xe9t\xe9")])
def test_links_lead_to_the_pages(tmp_path: Path, name: str) -> None:
    above = tmp_path / "above # all"
    entries = [
        entry(above / name / "lr_batch", "lr_batch", "Figure 6"),
        entry(tmp_path / name, "stochastic", "Figure 5"),
    ]
    for link in links(board(entries, above)):
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
        path = above / unquote(parts.path, errors="surrogateescape")
        assert path.read_text() == "<h1>the page</h1>"


def test_folders_at_fault_are_named(tmp_path: Path) -> None:
    one = entry(tmp_path / "lr_batch", "lr_batch", "Figure 6")
    faults = {tmp_path / "old": "/home/ada/old is damaged"}
    text = board([one], tmp_path, faults=faults).text
    assert "Left out, since no page could be made of them: old : …/old is damaged" in text
    assert "Left out" not in board([one], tmp_path).text


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium to open the page in")
@pytest.mark.parametrize(("width", "dark"), [(360, False), (420, True), (1200, False)])
def test_it_opens_without_scrolling_sideways(tmp_path: Path, width: int, dark: bool) -> None:
    claims = [*CLAIMS, Claim("x" * 300, "y" * 300, "z" * 300, "fails")]
    entries = [
        entry(tmp_path / ODD / ("n" * 200), "lr_batch", "Figure 6", claims=claims),
        entry(tmp_path / "r", "regularizers", "Tables 1-3", tables=[TABLE]),
        entry(tmp_path / "m", "mine", "w" * 150, facts={"scale": "s" * 150}),
    ]
    board(entries, tmp_path, faults={tmp_path / "old": "q" * 300})
    probe = """<script>addEventListener("load", () => setTimeout(() => {
    const d = document.querySelector("iframe").contentWindow, e = d.document;
    e.querySelectorAll("details").forEach((x) => { x.open = true; });
    const link = new URL(e.querySelector(".items a").getAttribute("href"), e.baseURI);
    document.body.id = JSON.stringify({ seen: d.innerWidth, whole: e.documentElement.scrollWidth,
      link: link.href, paper: d.getComputedStyle(e.body).backgroundColor });
    }, 300));</script>"""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!DOCTYPE html><body>{probe}<iframe src="scoreboard.html" '
        f'style="width:{width}px;height:900px;border:0"></iframe></body>'
    )
    command = [*COMMAND, "--allow-file-access-from-files", "--virtual-time-budget=2000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom"]
    done = subprocess.run(
        [*command, frame.as_uri()], check=True, capture_output=True, timeout=90, text=True
    )
    found = re.search(r'<body id="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    told = json.loads(unescape(found[1]))
    assert told["seen"] == width
    assert told["whole"] <= width
    assert unquote(urlsplit(told["link"]).path) == str(entries[0].page)
    assert told["paper"] == ("rgb(21, 23, 27)" if dark else "rgb(255, 255, 255)")
