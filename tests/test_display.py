import math
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import geomtraj as gt
from geomtraj.display import MOST_ROWS, html_table
from geomtraj.measuring import Results


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        assert tag in ("p", "table", "thead", "tbody", "tr", "th", "td"), tag
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.found.append(data)


def cells(thing):
    parser = Cells()
    parser.feed(thing._repr_html_())
    assert parser.open == []
    return parser.found


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=rng), torch.randint(3, (12,), generator=rng)
    groups = {}
    for name, kind in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))
        problem = gt.Problem(model, nn.CrossEntropyLoss(), [(x, y)])
        optimizer = kind(model.parameters(), lr=0.1)
        with gt.Recorder(folder / name, model, optimizer, gt.every(1)) as recorder:
            for _ in range(1):
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss.detach())
        trajectory = gt.Trajectory(folder / name)
        groups[name] = [gt.measure(trajectory, problem, ["r_med"], settings={"r_med": {"samples": 2}}, progress=False)]
    return {
        "trajectory": trajectory,
        "results": groups["adam"][0],
        "measurement": groups["adam"][0].of("r_med")[0],
        "table": gt.contrast(groups, at="step"),
        "r_med": next(iter(gt.r_med(problem, samples=2).values())),
        "diagonal": gt.diagonal(problem, samples=2),
        "pairs": gt.eigsh(problem, k=7, tol=0.1),
    }


NAMES = ("trajectory", "results", "measurement", "table", "r_med", "diagonal", "pairs")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_session_prints_is_short(name, things):
    text = repr(things[name])
    assert len(text) < 600 and "\n" not in text
    assert text.startswith(type(things[name]).__name__ + "(")
    assert cells(things[name])


def test_they_say_what_they_are(things):
    assert repr(things["diagonal"]).startswith("Diagonal(78 entries in 6 blocks; probing, ")
    pairs = things["pairs"]
    assert repr(pairs).startswith(f"Eigenpairs({float(pairs.values[0]):.4g}, ") and ", ...; 7 of 7 " in repr(pairs)
    assert f"{float(pairs.values[6]):.4g}" in cells(pairs)
    measurement = things["measurement"]
    first = next(iter(measurement.quantities))
    assert repr(measurement).startswith(f"Measurement(r_med at step 0, {first} ") and "and 6 more" in repr(measurement)
    assert set(measurement.quantities) <= set(cells(measurement))
    assert f"RMed({things['r_med'].value:.4g}" in repr(things["r_med"])
    assert {"r_med", "loss", "2"} <= set(cells(things["results"]))
    assert {"0", "1", "loss"} <= set(cells(things["trajectory"]))
    assert things["table"].primary.label in cells(things["table"])


def test_names_from_files_are_no_html(tmp_path, things):
    import dataclasses

    nasty = dataclasses.replace(
        things["measurement"], statistic="<script>", quantities={"<img src=x>": things["measurement"].quantities["all"]}
    )
    assert "<img src=x>" in cells(nasty)
    assert "<script" not in Results(tmp_path, {}, [nasty])._repr_html_()


def test_long_tables_end():
    made = html_table("all", ("a",), [(i,) for i in range(MOST_ROWS + 5)])
    assert made.count("<tr>") == MOST_ROWS + 1
    assert "and 5 more rows" in made
    assert "–" in html_table("", ("a",), [(math.nan,)])
