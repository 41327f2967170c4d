"""Kills, full disks, little memory, two writers: nothing reported is lost, and nothing good is deleted."""

import ctypes
import errno
import os
import random
import resource
import signal
import threading
import time
import warnings

import pytest
import torch
from attack_helpers import record, small, train
from torch import nn

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, every, files, repair, verify

pytestmark = pytest.mark.timeout(120)


def in_child(work):
    """Run something in a forked process; its exit status, negative for a signal's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def finished(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("background", [False, True])
def test_a_kill_at_any_time_loses_nothing_that_was_reported(tmp_path, attacks, background):
    whole, optimizer = small()
    train(whole, optimizer, 0, 30)
    for number in range(max(attacks // 15, 5)):
        path, (reader, writer) = tmp_path / str(number), os.pipe()

        def work(path=path, writer=writer):
            model, optimizer = small()
            with Recorder(path, model, optimizer, every(1), background=background) as rec:
                for step in range(10_000):
                    train(model, optimizer, step, step + 1, rec)
                    os.write(writer, b".")

        pid = in_child(work)
        os.close(writer)
        os.read(reader, 1)
        time.sleep(random.Random(number).uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert finished(pid) == -signal.SIGKILL
        reported = 1
        while part := os.read(reader, 65536):
            reported += len(part)
        os.close(reader)
        trajectory = Trajectory(path)
        assert trajectory.steps == list(range(len(trajectory))) and len(trajectory) > reported - background
        assert len(trajectory.log) >= reported and trajectory.status == "running"
        assert verify(path).whole
        model, optimizer = small()
        with Recorder(path, model, optimizer, every(1), resume=True) as rec:
            train(model, optimizer, rec.step, 30, rec)
        if trajectory.steps[-1] <= 30:
            assert all(map(torch.equal, whole.parameters(), model.parameters()))
        assert not [f for f in path.rglob("*.tmp")]


def test_a_disk_that_is_full_at_any_write_is_a_sentence_and_loses_nothing(tmp_path, monkeypatch):
    calls = [0]

    def failing(name, at):
        real = getattr(os, name)

        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return call

    def run(path, at):
        calls[0] = 0
        record(path)
        with monkeypatch.context() as patch:
            calls[0] = 0
            for name in ("write", "pwrite", "fsync", "ftruncate", "replace"):
                patch.setattr(os, name, failing(name, at))
            model, optimizer = small()
            with Recorder(path, model, optimizer, every(2), resume=True) as rec:
                train(model, optimizer, 6, 8, rec)
            return calls[0]

    total = run(tmp_path / "counted", -1)
    assert total > 20
    told = 0
    for at in range(1, total + 1):
        path = tmp_path / str(at)
        try:
            run(path, at)
        except TrajectoryError as error:
            assert "disk is full" in str(error), at
            told += 1
        assert [i.step for i in Trajectory(path)][:4] == [0, 2, 4, 6], at
        assert not [f for f in path.rglob("*.tmp")], at
        assert verify(path).whole, at
        model, optimizer = small()
        with Recorder(path, model, optimizer, every(2), resume=True) as rec:
            assert rec.step in (6, 8), at
    assert told > total / 2
    assert files.os is os


def test_little_memory_deletes_no_iterate(tmp_path):  # a tensor so large comes from the system, not from freed memory
    model = nn.Linear(3000, 3000)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with Recorder(tmp_path, model, optimizer, every(1)):
        model(torch.ones(1, 3000)).sum().backward()
        optimizer.step()
    before = sorted(p.name for p in (tmp_path / "iterates").iterdir())

    def limited(room):
        ctypes.CDLL(None).malloc_trim(0)  # or what earlier tests have freed would be room
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))

    def look():  # a piece at a time
        limited(2**24)
        assert verify(tmp_path).whole and repair(tmp_path) == []

    def copy():  # which does not fit, so that training waits for the disk
        limited(2**24)
        with Recorder(tmp_path / "other", model, optimizer, every(1), background=True):
            optimizer.step()

    def work():
        model = nn.Linear(3000, 3000)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        limited(2**24)
        try:
            Recorder(tmp_path, model, optimizer, resume=True).start()
        except MemoryError:
            os._exit(7)

    assert [finished(in_child(f)) for f in (work, look, copy)] == [7, 0, 0]
    assert [i.step for i in Trajectory(tmp_path / "other")] == [0, 1]
    assert sorted(p.name for p in (tmp_path / "iterates").iterdir()) == before
    assert [i.step for i in Trajectory(tmp_path)] == [0, 1]


def test_of_many_writers_one_records(tmp_path):
    outcomes, barrier = [], threading.Barrier(8)

    def work():
        model, optimizer = nn.Linear(2, 1), None
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        barrier.wait()
        try:
            with Recorder(tmp_path, model, optimizer, every(1)):
                time.sleep(0.3)
                outcomes.append("recorded")
        except TrajectoryError as error:
            outcomes.append(
                "refused" if f"process {os.getpid()}" in str(error) or "another process" in str(error) else error
            )

    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sorted(outcomes) == ["recorded"] + ["refused"] * 7
    assert Trajectory(tmp_path).status == "complete"


def test_a_forked_worker_neither_holds_nor_loses_the_lock(tmp_path):
    model, optimizer = small()
    recorder = Recorder(tmp_path, model, optimizer, every(1))
    recorder.start()
    worker = in_child(lambda: time.sleep(30))  # as a DataLoader's
    quick = in_child(lambda: None)
    assert finished(quick) == 0
    with pytest.raises(TrajectoryError, match="is being recorded"):
        Recorder(tmp_path, *small(), resume=True).start()
    recorder.stop()
    with Recorder(tmp_path, *small(), resume=True):
        pass
    os.kill(worker, signal.SIGKILL)
    finished(worker)


@pytest.mark.parametrize("background", [False, True])
def test_a_fork_of_a_recording_process_records_nothing_and_ends_nothing(tmp_path, background):
    """As a worker that trains a copy, evaluates, or leaves the block by an exception of its own."""
    model, optimizer = small()
    whole, other = small()
    train(whole, other, 0, 4)
    with Recorder(tmp_path, model, optimizer, every(1), background=background) as rec:
        train(model, optimizer, 0, 2, rec)

        def steps():
            train(model, optimizer, 2, 9)
            assert rec.step == 2

        def logs():
            with pytest.raises(InputError, match=f"process that records, {os.getppid()}"):
                rec.log(loss=1.0)
            with pytest.raises(InputError, match="fork of it"):
                rec.tick()

        for act in (steps, logs, rec.stop, lambda: rec.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)):
            assert finished(in_child(act)) == 0
        with pytest.raises(TrajectoryError, match="is being recorded"):
            Recorder(tmp_path, *small(), resume=True).start()
        train(model, optimizer, 2, 4, rec)
    trajectory = Trajectory(tmp_path)
    assert trajectory.steps == [0, 1, 2, 3, 4] and trajectory.status == "complete" and verify(tmp_path).whole
    assert all(map(torch.equal, whole.parameters(), trajectory[-1].parameters.values())) and len(trajectory.log) == 4


def test_threads_log_together_and_no_row_is_lost(tmp_path):
    with Recorder(tmp_path, *small()) as rec:
        threads = [threading.Thread(target=lambda i=i: [rec.log(**{f"x{i}": k}) for k in range(50)]) for i in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    assert verify(tmp_path).whole and len((tmp_path / "log.jsonl").read_text().splitlines()) == 400
