import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed_worker import CASE_NAMES, SCENARIOS, facts, measured, trajectory_of
from models import CASES
from torch.utils.data import DataLoader

import geomtraj as gt
from geomtraj.distributed import digest, shard
from geomtraj.errors import InputError

HERE = Path(__file__).parent
gloo = pytest.mark.skipif(not (hasattr(os, "fork") and dist.is_gloo_available()), reason="needs os.fork and gloo")
LOST = "lost another process: it was killed, stopped with an error"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the processes of each scenario returned, printed and ended with."""
    folder = tmp_path_factory.mktemp("processes")
    paths = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HERE / "distributed_worker.py", folder]
    subprocess.run(command, env=environment, timeout=240, check=True, stdout=subprocess.DEVNULL)

    def read(name):
        here, size = folder / name, SCENARIOS[name][1]
        returned = [torch.load(p) if (p := here / f"{rank}.pt").exists() else None for rank in range(size)]
        logs = [(here / f"{rank}.log").read_text() for rank in range(size)]
        return returned, logs, [int(code) for code in (here / "codes").read_text().split()]

    return {name: read(name) for name in SCENARIOS}


@gloo
@pytest.mark.parametrize("name", CASE_NAMES)
@pytest.mark.parametrize("scenario", ["equal 2", "equal 3"])
def test_every_process_has_the_numbers_of_one_process_with_all_batches(reports, scenario, name):
    returned, logs, codes = reports[scenario]
    assert set(codes) == {0}, logs
    problem = CASES[name]().problem
    expected = measured(problem)
    mine = [report[name] for report in returned]
    for key, value in expected.items():
        for report in mine:
            assert torch.allclose(report["numbers"][key], value, rtol=1e-8, atol=1e-10, equal_nan=True), key
            assert torch.equal(report["numbers"][key].nan_to_num(), mine[0]["numbers"][key].nan_to_num()), (
                key
            )  # to the bit, on each process
    assert all(report["facts"] == facts(problem) for report in mine)
    assert torch.equal(mine[0]["alone"], expected["loss"])
    assert mine[0]["ranks"] == list(range(len(mine)))


@gloo
def test_shares_are_ragged_and_one_process_may_have_none(reports):
    two, three = (reports[scenario][0] for scenario in ("equal 2", "equal 3"))
    assert [r["gpt"]["own batches"] for r in three] == [0, 1, 1]
    assert [r["gpt"]["first example"] for r in three] == [0, 0, 3]  # batches of 3 and 2 examples
    assert [r["weighted_regression"]["own batches"] for r in two] == [1, 2]
    assert [r["weighted_regression"]["first example"] for r in two] == [0, 4]


@gloo
def test_what_differs_between_processes_is_refused_and_the_group_goes_on(reports):
    (zero, one), logs, codes = reports["refused"]
    assert codes == [0, 0], logs
    assert one["exception"] == "KeyError: 'a hole in the data'"
    assert zero["exception"].startswith("ComputationError: process 1 of 2 met an error in its part: KeyError: 'a hole")
    assert zero["one shot"].startswith("InputError: batches is a one-shot iterator")
    assert one["one shot"].startswith(
        "InputError: process 0 of 2 met an error in its part: InputError: batches is a one"
    )
    for report in (zero, one):
        assert report["params"].startswith("InputError: params differs between the processes: 8 tensors with 136 ent")
        assert report["blocks"].startswith(
            "InputError: blocks differs between the processes: None on process 0, False on"
        )
        assert report["empty"].startswith("InputError: batches is empty")
        assert "cannot be copied or sent to an executor" in report["pickle"]
        assert report["not a group"].startswith("InputError: group is 'world': call torch.distributed.init_process_gro")
        assert torch.equal(report["loss"], zero["loss"])
        assert torch.equal(report["after errors on the side"], zero["loss"])
        loss, names = report["wrapped"]
        assert torch.equal(loss, zero["loss"]) and names[0] == "position"  # the model inside the wrapper
        assert report["parameters"].startswith("InputError: 'out.bias' of the model differs between process 0 and proc")
        assert report["moved"].startswith("ComputationError: processes 0 and 1 of 2 are out of step")


@gloo
def test_a_trajectory_is_measured_together_and_written_by_one(reports, tmp_path):
    returned, logs, codes = reports["recorded"]
    assert codes == [0, 0], logs
    (first, again), other = returned
    assert len(first) == 6 and first == again and other == [first, again]
    case = CASES["gpt"]()
    alone = gt.measure(trajectory_of(case, tmp_path / "run"), case.problem, ["trace"], progress=False)
    for m in alone.measurements:
        assert {label: q.value for label, q in m.quantities.items()} == pytest.approx(first[m.step, m.statistic])


@gloo
def test_a_killed_process_makes_the_others_stop(reports):
    returned, logs, codes = reports["killed"]
    assert codes == [0, -9, 0, 0] and all("started" in log for log in logs), logs
    for rank in (0, 2, 3):
        said = returned[rank]["said"]
        assert said.startswith(f"ComputationError: process {rank} of 4 {LOST}")
        assert said.endswith("<- RuntimeError")  # what torch.distributed raised


@gloo
def test_an_error_on_one_process_ends_the_others(reports):
    _, logs, codes = reports["raised"]
    assert codes == [1, 1]
    assert LOST in logs[0] and "KeyError: 'a hole in the data'" in logs[1]


@gloo
def test_an_error_caught_on_one_process_does_not_lead_to_wrong_sums(reports):
    returned, logs, codes = reports["caught"]
    assert codes == [0, 0], logs
    for report in returned:
        assert report["said"].startswith("ComputationError: process 1 of 2 met an error while it evaluated its batches")


@gloo
def test_a_process_that_does_not_answer_is_waited_for_until_the_timeout(reports):
    returned, logs, codes = reports["stuck"]
    assert codes == [0, 0], logs
    assert LOST in returned[0]["said"] and "did not answer within 8 s" in returned[0]["said"]
    assert LOST in returned[1]["said"]


@gloo
def test_products_with_different_vectors_are_not_added(reports):
    returned, logs, codes = reports["other vectors"]
    assert codes == [0, 0, 0], logs
    for report in returned:
        assert report["said"].startswith("ComputationError: processes 0 and 1 of 3 are out of step")


def test_without_a_group_nothing_is_summed():
    problem = CASES["gpt"]().problem
    part = torch.ones(2)
    assert problem.over_ranks(part, of=part) is part
    assert problem.on_ranks(lambda: "own") == ["own"]
    assert (problem.rank, problem.first_example) == (0, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_put_together_are_the_batches_in_their_order(size):
    everything = torch.arange(8.0).split(2)
    loader = DataLoader(torch.arange(8.0), batch_size=2)

    class Lazy:
        def __iter__(self):
            return iter(everything)

    for batches in (list(everything), loader, Lazy()):
        shares = [shard(batches, dist.ProcessGroup(rank, size)) for rank in range(size)]
        assert torch.equal(torch.stack([batch for share in shares for batch in share]), torch.stack(everything))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_share_needs_a_process_group():
    with pytest.raises(InputError, match=r"group is None: call torch\.distributed\.init_process_group\(\) first"):
        shard([1, 2], dist.group.WORLD)
    with pytest.raises(InputError, match="group is 2"):
        gt.Problem(CASES["gpt"]().problem.model, lambda m, b: m(b), [1], group=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool])
def test_a_digest_tells_tensors_apart(dtype):
    rng = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (500, 12), generator=rng)
    signs = (signs if dtype == torch.bool else 2 * signs - 1).to(dtype)
    different = {tuple(row.tolist()) for row in signs}
    assert len({digest(row) for row in signs}) == len(different)
    assert digest(signs) == digest(signs.clone()) == digest(signs.T.contiguous().T)
    assert digest(signs.flip(0)) != digest(signs)


def test_a_digest_sees_the_last_bit_of_a_long_tensor():
    long = torch.ones(2**20 + 3)
    other = long.clone()
    other[-1] = torch.nextafter(other[-1], torch.tensor(2.0))
    assert digest(long) != digest(other)


@gloo
@pytest.mark.slow
def test_the_script_of_the_docs_prints_the_same_on_one_and_on_two_processes(tmp_path):
    page = (HERE.parent / "docs" / "distributed.md").read_text()
    script = tmp_path / "curvature.py"
    script.write_text(page.split("```python\n")[1].split("```")[0])
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    runs = [
        subprocess.Popen([*torchrun, n, script], env=environment, stdout=subprocess.PIPE, text=True) for n in ("1", "2")
    ]
    one, two = (run.communicate(timeout=200)[0] for run in runs)
    assert one == two and one.startswith("loss 1.6") and one.count("\n") == 1
