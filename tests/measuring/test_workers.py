"""Executors: right numbers from threads, one trip for the problem, workers that die, failures that stay alone."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from measured import Troubled, files, numbers, problem, record

import geomtraj as gt
from geomtraj.errors import ComputationError, InputError
from geomtraj.measuring import workers

TESTS = str(Path(__file__).parent.parent)


@pytest.fixture
def run(tmp_path):
    return record(tmp_path / "run")


def measured(run, *statistics, **kwargs):
    return gt.measure(run, kwargs.pop("problem", None) or problem(), statistics or ["trace"], progress=False, **kwargs)


def troubled(run, kind, at="2"):
    (run.path.parent / "calls").mkdir(exist_ok=True)
    return Troubled(kind, at, str(run.path.parent / "calls"), str(run.path))


def calls(run, step):
    file = run.path.parent / "calls" / f"{step}"
    return file.read_text().split() if file.exists() else []


def test_threads_give_the_bits_of_a_serial_run(run):
    model = problem().model
    serial = measured(run, "trace", "spectrum", settings={"spectrum": {"steps": 5, "refine": 0}})
    for attempt in range(3):
        for file in files(run):
            file.unlink()
        with ThreadPoolExecutor(3) as executor:
            together = measured(
                run, "trace", "spectrum", problem=problem(model) if attempt else None, executor=executor,
                settings={"spectrum": {"steps": 5, "refine": 0}},
            )  # fmt: skip
        assert numbers(together) == numbers(serial)


def test_two_problems_on_one_model_measured_by_two_threads(tmp_path):
    runs = [record(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    alone = [numbers(measured(run)) for run in runs]
    for run in runs:
        for file in files(run):
            file.unlink()
    model, found = problem().model, {}
    problems = [problem(model), problem(model)]
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: numbers(measured(runs[i], problem=problems[i]))}))
        for i in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[0], found[1]] == alone


class Elsewhere(Executor):
    """Runs what it is sent as a worker on another machine would: pickled, and without the parent's memory and files."""

    def __init__(self):
        self.bytes, self.held, self._max_workers = [], {}, 1

    def submit(self, function, /, *args, **kwargs):
        future, packed = Future(), pickle.dumps((function, args))
        self.bytes.append(len(packed))
        function, args = pickle.loads(packed)
        here, workers._HELD = workers._HELD, self.held
        try:
            parcel = workers._Parcel(args[0].token, "/nowhere", args[0].job)
            future.set_result(function(parcel, *args[1:]))
        except BaseException as error:
            future.set_exception(error)
        finally:
            workers._HELD = here
        return future


def test_the_problem_is_sent_to_a_worker_that_cannot_see_it(run):
    serial = numbers(measured(run))
    for file in files(run):
        file.unlink()
    executor = Elsewhere()
    assert numbers(measured(run, executor=executor)) == serial
    large = [size for size in executor.bytes if size > 3000]
    assert len(large) == workers.AT_FIRST and len(executor.bytes) == 4 + len(large)


def test_a_problem_is_unpacked_once_in_each_process(run, monkeypatch):
    monkeypatch.setattr(workers, "_HELD", {})  # or the workers would be forked with what earlier tests have unpacked
    with ProcessPoolExecutor(2) as executor:
        list(executor.map(time.sleep, [0.01] * 4))  # the workers are there before the problem is
        measured(run, troubled(run, "none"), executor=executor)
        held = set(executor.map(held_problems, range(8)))
    assert all(count == 1 for _, count in held)


def held_problems(_):
    time.sleep(0.02)
    return os.getpid(), len(workers._HELD) or 1


def test_a_file_that_is_not_the_job_is_not_unpickled(tmp_path):
    (tmp_path / "job").write_bytes(pickle.dumps("something else"))
    assert workers._Parcel("0" * 64, str(tmp_path)).open() is None


@pytest.mark.parametrize("pool", [None, ThreadPoolExecutor, ProcessPoolExecutor])
def test_one_failing_unit_is_a_result_and_the_others_go_on(run, pool):
    def go(**kwargs):
        if pool is None:
            return measured(run, troubled(run, "error"), "trace", **kwargs)
        with pool(2) as executor:
            return measured(run, troubled(run, "error"), "trace", executor=executor, **kwargs)

    results = go()
    status = {m.step: m.status for m in results.of("troubled")}
    assert status == {0: "ok", 2: "failed: RuntimeError: something went wrong", 4: "ok", 6: "ok"}
    assert all(m.status == "ok" for m in results.of("trace")) and len(results) == 12
    assert any("troubled failed at 1 iterate" in r for r in results.remarks)
    assert {m.step: m.status for m in gt.Results.load(run.path).of("troubled")} == status
    assert len(calls(run, 2)) == 1
    go()
    assert len(calls(run, 2)) == 1  # not met again
    go(retry=True)
    assert len(calls(run, 2)) == 2 and len(calls(run, 0)) == 1


def test_a_failure_is_tried_again_where_its_code_changed_or_memory_had_run_out(run, monkeypatch):
    from geomtraj.measuring import code

    measured(run, troubled(run, "memory"))
    assert "MemoryError" in gt.Results.load(run.path).of("troubled")[1].status
    measured(run, troubled(run, "memory"))
    assert len(calls(run, 2)) == 2
    measured(run, troubled(run, "error"))
    measured(run, troubled(run, "error"))
    assert len(calls(run, 2)) == 3
    monkeypatch.setattr(code, "__version__", "99")
    measured(run, troubled(run, "error"))
    assert len(calls(run, 2)) == 4


def test_input_that_a_statistic_refuses_is_raised_at_the_first_iterate_and_a_reason_later(run):
    with pytest.raises(InputError, match="this cannot be measured"):
        measured(run, troubled(run, "input", at="0"))
    with ProcessPoolExecutor(2) as executor, pytest.raises(InputError, match="this cannot be measured"):
        measured(run, troubled(run, "input", at="0"), executor=executor)
    results = measured(run, troubled(run, "input", at="4"))
    assert [m.status for m in results.of("troubled")].count("failed: this cannot be measured.") == 1


def test_a_worker_killed_once_costs_a_retry(run):
    with ProcessPoolExecutor(2) as executor:
        results = measured(run, troubled(run, "die once"), "trace", executor=executor)
    assert len(results) == 12 and all(m.status == "ok" for m in results.measurements)
    assert any("tried once more" in r for r in results.remarks) and len(calls(run, 2)) == 2


def test_a_unit_that_kills_its_worker_twice_gets_a_reason(run):
    with ProcessPoolExecutor(2) as executor:
        results = measured(run, troubled(run, "die"), executor=executor)
    status = {m.step: m.status for m in results.of("troubled")}
    assert "ended twice" in status[2] and {status[s] for s in (0, 4, 6)} == {"ok"}
    assert len(calls(run, 2)) == 2
    assert len(gt.Results.load(run.path).of("troubled")) == 3  # not stored, so it is tried again


def test_executors_that_fail_end_in_one_sentence(run):
    class Broken(Executor):
        def submit(self, function, /, *args, **kwargs):
            future = Future()
            future.set_exception(KeyError("scheduler"))
            return future

    with pytest.raises(ComputationError, match=r"the executor failed at step \d \(KeyError: 'scheduler'\)"):
        measured(run, executor=Broken())
    with pytest.raises(InputError, match=r"executor is a int: pass a concurrent\.futures\.Executor"):
        measured(run, executor=4)
    ended = ProcessPoolExecutor(1)
    ended.shutdown()
    with pytest.raises(ComputationError, match="the executor failed"):
        measured(run, executor=ended)


def test_a_dask_client_stands_for_its_executor(run):
    class Client:
        """What a Dask Client has: its own submit, and get_executor."""

        def submit(self, function, *args):
            raise AssertionError

        def get_executor(self):
            return ThreadPoolExecutor(2)

    assert len(measured(run, executor=Client())) == 8


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from measured import *
from geomtraj.measuring.workers import pool
if __name__ == "__main__":
    with pool(2, 1) as executor:
        gt.measure({run!r}, problem(), [Troubled("sleep", "0 2", {calls!r}, {run!r})], executor, progress=False)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(run, end):
    folder = run.path.parent / "calls"
    folder.mkdir()
    code = PARENT.format(tests=TESTS, run=str(run.path), calls=str(folder))
    command = [sys.executable, "-c", code]
    (scratch := run.path.parent / "scratch").mkdir()
    pipes = {"stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "TMPDIR": str(scratch)}}
    with subprocess.Popen(command, start_new_session=True, **pipes) as parent:
        wait_for(lambda: calls(run, 0) and calls(run, 2))
        children = [int(pid) for step in (0, 2) for pid in calls(run, step)]
        assert all(map(alive, children))
        if end == signal.SIGINT:
            os.killpg(parent.pid, end)  # as the terminal does
        else:
            parent.send_signal(end)
        said = parent.communicate(timeout=90)[1]
    wait_for(lambda: not any(map(alive, children)) and not list(scratch.glob("geomtraj-*")))
    assert said.count("Traceback") == (end == signal.SIGINT)  # the parent's own, and none of the workers'


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
