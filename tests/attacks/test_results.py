"""Results, packs and the summary altered at random or made to harm: believed only where they are what was written."""

import hashlib
import json
import os
import random

import pytest
import torch
from attack_helpers import record
from test_mutations import mutated

import geomtraj as gt
from geomtraj.errors import TrajectoryError
from geomtraj.measuring import folder as results_folder
from geomtraj.measuring import record as records
from geomtraj.measuring.folder import pack, read_stored
from geomtraj.measuring.summary import read_summary

X = torch.linspace(-1, 1, 12).reshape(4, 3)


def measured(path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    problem = gt.Problem(model, lambda model, batch: model(batch).square()[:, 0], [X.double()])
    return gt.measure(path, problem, ["trace"], progress=False)


def told(m):
    return m.step, m.statistic, m.settings, m.quantities, m.details, m.iterate


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("attacked") / "run"
    record(path)
    measured(path)
    return path


@pytest.mark.parametrize("kind", ["own files", "packs"])
def test_no_mutated_result_is_believed(run, attacks, kind, monkeypatch):
    if kind == "packs":
        monkeypatch.setattr(results_folder, "PACK_FROM", 1)
        pack(run)
    truth = {place: told(m) for place, m in read_stored(run).results.items()}
    assert len(truth) == 8
    files = sorted((run / "results").iterdir())
    assert len(files) == (8 if kind == "own files" else 1)
    told_of = 0
    for number in range(attacks):
        rng = random.Random(f"{kind} {number}")
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(mutated(whole, rng))
        try:
            stored = read_stored(run)
        except TrajectoryError as error:  # a digit of its format's number
            assert "newer" in str(error) and str(file) in str(error), number
            file.write_bytes(whole)
            continue
        assert all(told(m) == truth[place] for place, m in stored.results.items()), number
        bad = stored.damaged + stored.misnamed
        assert kind == "packs" or len(stored.results) + len(bad) == 8, number
        told_of += bool(bad)
        file.write_bytes(whole)
    assert told_of > attacks * 0.7


def test_no_mutated_summary_is_believed(run, attacks):
    path = run / "measured.json"
    whole, truth = path.read_bytes(), read_summary(run)
    for number in range(attacks):
        path.write_bytes(mutated(whole, random.Random(f"summary {number}")))
        try:
            assert read_summary(run) == truth, number
        except TrajectoryError as error:
            assert str(path) in str(error), number
    path.write_bytes(whole)


def sealed(content):
    body = json.dumps(content).encode()
    return records._START + hashlib.sha256(body).hexdigest().encode() + records._END + body[1:] + b"\n"


STRANGE = [None, True, 3, -1, 10**400, "text", [], {}, [[[]]], {"a": None}, {"again": 1}, {"a": ["matrix", 3]}]


def test_right_checksums_over_strange_content_are_refused_or_harmless(run, attacks):
    file = next(f for f in sorted((run / "results").iterdir()) if f.name.endswith("json") or "pack" in f.name)
    whole = file.read_bytes()
    line = whole.splitlines()[0]
    content = json.loads(line)
    del content["sha256"]
    for number in range(attacks):
        rng = random.Random(number)
        changed = json.loads(json.dumps(content))
        place = rng.choice([changed, changed["made"], changed["quantities"], changed["settings"]])
        names = [*place, "blocks", "failure", "threads", "remarks", "format_version"]
        place[rng.choice(names)] = rng.choice(STRANGE)
        file.write_bytes(sealed(changed))
        try:
            for m in (results := gt.Results.load(run)).measurements:
                repr(m), m.failed, [m.status_of(label) for label in m.quantities]
            results.losses() if "loss" in results.statistics else None
        except TrajectoryError as error:
            assert "newer" in str(error) and str(file) in str(error), number
    for made in ({"failure": {"a": 1}}, {"failure": 3}, {"threads": []}, {"blocks": {"all": 3}}):
        file.write_bytes(sealed({**content, "made": {**content["made"], **made}}))
        assert measured(run).remarks[0].startswith(f"{run}: 1 result passed over") and len(measured(run)) == 8
    for text in (b'{"a":' * 10**5, sealed([1]), sealed({}), b"[" * 10**6):
        file.write_bytes(text)
        assert len(read_stored(run).damaged) == 1
    file.write_bytes(whole)


@pytest.mark.parametrize("kind", ["pipe", "folder", "zero", "loop", "broken", "sparse", "link"])
def test_what_is_no_regular_result_is_passed_over_and_told(tmp_path, kind):
    record(tmp_path)
    measured(tmp_path)
    file = next(f for f in sorted((tmp_path / "results").iterdir()) if "trace" in f.name)
    whole = file.read_bytes()
    file.unlink()
    (tmp_path / "elsewhere").write_bytes(whole)
    {
        "pipe": lambda: os.mkfifo(file),
        "folder": lambda: file.mkdir(),
        "zero": lambda: file.symlink_to("/dev/zero"),
        "loop": lambda: file.symlink_to(file),
        "broken": lambda: file.symlink_to("absent"),
        "sparse": lambda: (file.write_bytes(whole), os.truncate(file, 2**42)),
        "link": lambda: file.symlink_to(tmp_path / "elsewhere"),
    }[kind]()
    results = gt.Results.load(tmp_path)
    if kind == "link":  # as data managers put them in a file's place
        assert len(results) == 8 and not results.remarks
        return
    assert len(results) == 7 and file.name in results.remarks[0]
    if kind != "folder":
        assert len(measured(tmp_path)) == 8 and not gt.Results.load(tmp_path).remarks
