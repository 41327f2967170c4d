"""Kills, full disks, little memory, two writers: nothing reported is lost, and nothing good is deleted."""

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

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, every, files, verify

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

    def work():
        model = nn.Linear(3000, 3000)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, size + 2**24))
        try:
            Recorder(tmp_path, model, optimizer, resume=True).start()
        except MemoryError:
            os._exit(7)

    assert finished(in_child(work)) == 7
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
