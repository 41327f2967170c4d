import csv
import html.parser
import math
import os
import re
from urllib.parse import unquote

import pytest
from synthetic import groups, results_of, run

from geomtraj.comparing import contrast
from geomtraj.errors import InputError
from geomtraj.measuring.results import Results
from geomtraj.reporting import api, report
from geomtraj.statistics.base import Quantity

FIGURES = {"contrast", "losses", "r_med_loss", "r_med_step", "densities", "eigenvalues", "trace"}
SMALL = {"layers": 0, "steps": [0, 5, 10, 20, 40]}
NASTY = "<script>alert(1)</script>$x$"


class Page(html.parser.HTMLParser):
    """The tags and the text of a page; fails on a tag that is closed out of order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.words, self.links, self.names = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open
        self.text = re.sub(r"[\s\N{NO-BREAK SPACE}]+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.names += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture
def few_figures(monkeypatch):
    """For tests of the page: the figures have tests of their own, and take time."""
    monkeypatch.setattr(api, "FIGURES", tuple(f for f in api.FIGURES if f.__module__.endswith(("forest", "losses"))))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = report(groups(seeds=2, **SMALL), folder / "new" / "report.html")
    return path, Page(path)


def test_everything_is_written(written):
    path, page = written
    files = {p.name for p in (path.parent / "report_files" / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in FIGURES for kind in ("pdf", "svg")}
    assert {p.name for p in (path.parent / "report_files" / "tables").iterdir()} >= {
        "measurements.csv",
        "runs.csv",
        "contrast_r_med_loss.csv",
        "contrast_r_med_step.csv",
    }
    assert page.tags.count("img") == len(FIGURES)
    with (path.parent / "report_files" / "tables" / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = next(r for r in rows if r["label"] == "embed.weight" and r["step"] == "40" and r["seed"] == "1")
    m = next(m for m in groups(seeds=2, **SMALL)["adam"][1].of("r_med") if m.step == 40)
    assert float(found["value"]) == m.quantities["embed.weight"].value


def test_the_page_needs_nothing_else(written):
    path, page = written
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.names
            continue
        assert link.startswith("data:image/svg+xml;base64,") or (path.parent / link).exists()
    assert not re.search(r"https?://|@import|url\(", path.read_text())
    assert not {"link", "iframe"} & set(page.tags) and page.tags.count("script") == 1


def test_the_page_says_what_was_run(written):
    _, page = written
    for words in ("pydoc-lm", "geomtraj train --optimizers sgdm", "torch 2.13.0", "0123456789ab", "in all", "0.003"):
        assert words in page.text
    assert "2 pairs of runs" in page.text and "2 seeds each" in page.text


def test_the_same_results_give_the_same_page(tmp_path, few_figures):
    first, second = (report(groups(seeds=2, **SMALL), tmp_path / name / "report.html") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    files = [file for file in first.parent.rglob("*") if file.is_file()]
    assert len(files) > 3
    for file in files:
        assert (second.parent / file.relative_to(first.parent)).read_bytes() == file.read_bytes()


def test_two_pages_in_one_folder_keep_their_own_figures_and_tables(tmp_path, few_figures):
    first = report(groups(seeds=2, **SMALL), tmp_path / "one page.html")
    kept = {f: f.read_bytes() for f in (tmp_path / "one page_files").rglob("*") if f.is_file()}
    report(groups(seeds=1, **SMALL), tmp_path / "two.html")
    assert kept == {f: f.read_bytes() for f in kept}
    links = re.findall(r'href="([^"#:]+\.(?:csv|svg|pdf))"', first.read_text())
    assert len(links) > 3
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_failures_are_told_and_text_is_escaped(tmp_path, few_figures):
    bad = run("sgdm", 1, **SMALL, diverged_at=20)
    odd = run("sgdm", 2, **SMALL, statistics=("loss", "r_med"))
    odd.manifest["meta"]["note"] = NASTY
    odd.manifest["sessions"][0]["command"] = NASTY
    odd.manifest["status"] = "interrupted"
    names = {
        "adam": [run("adam", s, **SMALL, terrain=0.5) for s in range(3)],
        NASTY: [run("sgdm", 0, **SMALL), bad, odd],
    }
    path = report(names, tmp_path / "report.html", title=NASTY)
    page = Page(path)
    assert page.tags.count("script") == 1 and NASTY in page.text
    assert f"{NASTY} seed 1 (sgdm-1) diverged at step 20: it is left out" in page.text
    assert "has status “interrupted”" in page.text
    alone = f"{NASTY} / adam: left out for want of a partner: adam seed 1."
    assert f"Ratios at equal loss (r_med) and at the same step (r_med): {alone}" in page.text
    assert "lambda_min has not converged: residual 0.5 at -7" in page.text and "2 pairs of runs" in page.text


def test_one_optimizer_has_a_page_without_contrast(tmp_path, few_figures):
    page = Page(report({"adam": [run("adam", **SMALL)]}, tmp_path / "report.html"))
    assert "There is one optimizer only, adam" in page.text and "Ratios of R_med" not in page.text
    assert page.tags.count("img") == 1


def test_one_seed_is_not_enough(tmp_path, few_figures):
    page = Page(report(groups(seeds=1, statistics=("loss", "r_med"), **SMALL), tmp_path / "report.html"))
    assert (
        "undecided: r_med of sgdm over that of adam" in page.text
        and "no interval can be given with one seed" in page.text
    )


def test_statistics_that_were_not_measured(tmp_path):
    page = Page(report(groups(seeds=1, **SMALL, statistics=("loss",)), tmp_path / "report.html"))
    assert "It cannot be answered from these runs" in page.text and page.tags.count("img") == 1
    for name in ("r_med", "spectrum", "trace"):
        assert f"“{name}” was not measured" in page.text


def test_a_users_own_bare_results(tmp_path):
    """Nothing known but numbers, some of which cannot be drawn."""
    odd = {"w": [math.inf, 2.0, math.nan], "v": [0.0, 0.0, 0.0]}
    data = {"a": [results_of([0, 1, 2], [3.0, math.nan, 1.0], odd)], "b": [results_of([0, 1, 2], [3.0, 2.0, 1.0], odd)]}
    page = Page(report(data, tmp_path / "report.html"))
    assert "undecided: no block of the 2 has a usable value of r_med" in page.text


def test_all_runs_diverged(tmp_path):
    data = {"a": [run("adam", diverged_at=0)], "b": [run("sgdm", diverged_at=5)]}
    page = Page(report(data, tmp_path / "report.html"))
    assert "diverged" in page.text and "No figure can be drawn" in page.text


GOOD = {"a": [results_of([0, 1], [2.0, 1.0], {"w": [1.0, 2.0]})]}


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "must be a dict"),
        ({}, {}, "is empty"),
        ({"a": []}, {}, "empty list"),
        ({"a": [Results("run", {}, [])]}, {}, "no measurement at all"),
        (GOOD, {"levels": 0}, "levels is 0"),
        (GOOD, {"path": 7}, "path must be the name of a file"),
    ],
)
def test_bad_input(data, options, message):
    with pytest.raises(InputError, match=message):
        report(data, **options)


def test_a_path_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        report(GOOD, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*choose another path"):
        report(GOOD, tmp_path / "file" / "report.html")
    assert os.listdir(tmp_path) == ["file"]


def test_a_block_that_is_zero_to_rounding_is_named_once(tmp_path, monkeypatch):
    figures = tuple(f for f in api.FIGURES if f.__module__.endswith(("forest", "r_med_curves")))
    monkeypatch.setattr(api, "FIGURES", figures)
    data = groups(seeds=2, **SMALL, statistics=("loss", "r_med"))
    for r in (r for runs in data.values() for r in runs):
        for m in r.of("r_med"):
            m.quantities["key.bias"] = Quantity(math.nan, math.nan, math.nan)
            m.details["key.bias"] = {"status": "zero to rounding beside the other blocks"}
            object.__setattr__(m, "status", "key.bias: zero to rounding beside the other blocks")
    path = report(data, tmp_path / "report.html")
    page = Page(path)
    assert page.text.count("key.bias") == page.text.count("zero to rounding") == 1
    assert "20 of 20" in page.text and contrast(data).primary == contrast(groups(seeds=2, **SMALL)).primary
    assert "key.bias" not in "".join(f.read_text() for f in tmp_path.glob("*_files/figures/*.svg"))
