"""Many results in a few files, several processes at one folder, and what `verify` is told."""

import json
import shutil
import threading

import pytest
from click.testing import CliRunner
from measured import alter, files, numbers, problem, record

import geomtraj as gt
from geomtraj.cli import main
from geomtraj.errors import TrajectoryError
from geomtraj.measuring import check_results, folder, repair_results
from geomtraj.measuring.folder import key, key_of, read_stored, result_path, write_measurement
from geomtraj.measuring.record import Measurement
from geomtraj.statistics import Quantity


@pytest.fixture
def run(tmp_path):
    return record(tmp_path / "run")


def measured(run, *statistics, **kwargs):
    return gt.measure(run, problem(), statistics or ["trace"], progress=False, **kwargs)


def packs(run):
    return [f for f in files(run) if f.suffix == ".jsonl"]


def test_many_results_go_into_packs_and_stay_the_same(run, monkeypatch):
    monkeypatch.setattr(folder, "PACK_FROM", 5)
    first = measured(run)
    (pack,) = files(run)
    assert len(pack.read_text().splitlines()) == 8
    assert all(json.loads(line)["step"] in run.steps for line in pack.read_text().splitlines())
    assert numbers(gt.Results.load(run.path)) == numbers(first)
    measured(run)
    assert files(run) == [pack]
    measured(run, resume=False)
    assert len(packs(run)) == 2 == len(files(run))
    assert numbers(gt.Results.load(run.path)) == numbers(first)


def test_what_is_newer_comes_first(tmp_path):
    def write(value):
        record = Measurement(3, 0.0, "s", {}, {"s": Quantity(value)}, made={"problem": "p"}, iterate="c")
        write_measurement(tmp_path, record)
        return result_path(tmp_path, record.step, key_of(record))

    def read():
        return read_stored(tmp_path).results[3, key("s", {}, "p")].quantities["s"].value

    for number, value in ((2, 20.0), (10, 100.0), (9, 90.0)):
        shutil.move(write(value), tmp_path / "results" / f"pack.{number}.0123abcd.jsonl")
    assert read() == 100
    write(1.0)
    assert read() == 1


def test_a_damaged_line_costs_one_result(run, monkeypatch):
    monkeypatch.setattr(folder, "PACK_FROM", 5)
    first = measured(run)
    (pack,) = packs(run)
    text = bytearray(pack.read_bytes())
    lines = pack.read_bytes().splitlines(keepends=True)
    text[len(lines[0]) + 200] ^= 1
    pack.write_bytes(text)
    loaded = gt.Results.load(run.path)
    (said,) = loaded.remarks
    assert len(loaded) == 7 and "1 result passed over" in said and f"{pack.name}, line 2" in said
    assert numbers(measured(run)) == numbers(first)
    pack.write_bytes(b"".join(lines)[:-50])  # cut short
    assert len(gt.Results.load(run.path)) == 7
    assert numbers(measured(run)) == numbers(first)
    assert gt.Results.load(run.path).remarks  # the line is still there
    assert repair_results(run.path) == [f"kept results/{pack.name} as {pack.name}.damaged"]
    loaded = gt.Results.load(run.path)
    assert numbers(loaded) == numbers(first) and not loaded.remarks and check_results(run.path) == []


def test_reading_while_another_process_packs(run, monkeypatch):
    measured(run)
    first = numbers(gt.Results.load(run.path))
    monkeypatch.setattr(folder, "PACK_FROM", 1)
    real, calls = folder._read, []

    def read(path):
        if not calls:
            calls.append(path)
            folder.pack(run.path)
        return real(path)

    monkeypatch.setattr(folder, "_read", read)
    assert numbers(gt.Results.load(run.path)) == first and len(packs(run)) == 1


def test_two_measures_of_one_folder_at_once(run, monkeypatch):
    monkeypatch.setattr(folder, "PACK_FROM", 3)
    alone = numbers(measured(run, "trace", "spectrum", settings={"spectrum": {"steps": 3, "refine": 0}}))
    shutil.rmtree(run.path / "results")
    found = {}

    def go(name):
        found[name] = measured(run, name, settings={"spectrum": {"steps": 3, "refine": 0}} if name != "trace" else None)

    threads = [threading.Thread(target=go, args=(name,)) for name in ("trace", "spectrum")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = measured(run, "trace", "spectrum", settings={"spectrum": {"steps": 3, "refine": 0}})
    assert numbers(together) == alone == numbers(gt.Results.load(run.path)) and not together.remarks


def test_checks_name_what_is_wrong(run):
    assert check_results(run.path) == []
    measured(run)
    assert check_results(run.path) == []
    names = files(run)
    names[0].write_bytes(names[0].read_bytes()[:-9])
    names[1].rename(names[1].with_name(names[1].name.replace("00000000", "00000001")))
    alter(run, 6)
    (run.path / "measured.json").write_text("{")
    found = dict(check_results(run.path))
    assert list(found) == [
        "measured.json",
        f"results/{names[0].name}",
        f"results/{names[1].name.replace('00000000', '00000001')}",
        "results: step 6, loss",
        "results: step 6, trace",
    ]
    assert [len(set(found.values())), "checksum" in found[f"results/{names[0].name}"]] == [4, True]
    done = repair_results(run.path)
    assert len(done) == 2 and all(sentence.endswith(".damaged") for sentence in done)
    assert sum(f.name.endswith(".damaged") for f in files(run)) == 2
    assert len(measured(run)) == 8 and check_results(run.path) == []


def test_the_command_line_verifies_and_repairs_results(run):
    measured(run)

    def command(name):
        return CliRunner().invoke(main, [name, str(run.path)])

    assert command("verify").exit_code == 0
    file = files(run)[3]
    file.write_bytes(file.read_bytes()[:50])
    found = command("verify")
    assert found.exit_code == 1 and f"results/{file.name}: its checksum" in found.output
    assert f"kept results/{file.name} as {file.name}.damaged" in command("repair").output
    assert command("verify").exit_code == 0


def test_checks_of_results_elsewhere(run, tmp_path):
    measured(run, out=tmp_path / "out")
    assert check_results(tmp_path / "out") == []
    alter(run, 6)
    assert [file for file, _ in check_results(tmp_path / "out")] == ["results: step 6, loss", "results: step 6, trace"]


def test_a_newer_format_is_named_by_its_file(run):
    measured(run)
    pack = run.path / "results" / "pack.000001.0123abcd.jsonl"
    pack.write_text(json.dumps({"format_version": 99}) + "\n")
    with pytest.raises(TrajectoryError, match=r"pack\.000001.*format 99, newer"):
        gt.Results.load(run.path)
    assert "newer" in dict(check_results(run.path))["results"]
