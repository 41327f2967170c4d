"""What several processes do in tests/test_distributed.py: `python distributed_worker.py FOLDER [SCENARIO ...]`."""

import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from models import CASES
from torch import nn

import geomtraj as gt
from geomtraj.distributed import shard

CASE_NAMES = ("gpt", "weighted_regression")


def shared(case, batches=None, **options):
    """The case's problem with its batches shared out."""
    whole = case.problem
    batches = shard(list(whole.batches), dist.group.WORLD) if batches is None else batches
    return gt.Problem(whole.model, whole.objective.loss, batches, group=dist.group.WORLD, **options)


def measured(problem):
    """Everything that sums over batches, and what is built on it."""
    operator, ggn = gt.Hessian(problem), gt.GGN(problem)
    start = problem.theta() + 0.1
    pairs, density = gt.eigsh(operator, k=3, seed=1), gt.spectral_density(ggn, steps=8, probes=2, seed=2)
    return {
        "loss": problem.loss(),
        "loss elsewhere": problem.loss(start),
        "gradient": problem.gradient(start),
        "hessian": operator.dense(),
        "ggn": ggn.dense(),
        "block": operator.block(next(iter(problem.layout))).dense(),
        "eigenvalues": pairs.values,
        "eigenvectors": pairs.vectors * pairs.vectors.sum(0).sign(),
        "nodes": density.nodes,
        "weights": density.weights,
        "trace": torch.tensor(gt.trace(operator, probes=4, seed=3).value),
        "xdiag": gt.diagonal(operator, "xdiag", samples=16, seed=4).values,
        "probing": gt.diagonal(problem, "probing", samples=8, seed=5).values,
        "exact": gt.diagonal(problem, "exact").values,
        "r_med": torch.tensor([r.value for r in gt.r_med(problem, samples=8, seed=6).values()]).double(),
        "total weight": torch.tensor(problem.total_weight),
        "examples": torch.tensor(problem.examples),
    }


def facts(problem):
    """What must be the same on all processes exactly, and be that of one process."""
    blocks = [(b.name, b.kind, b.indices.tolist()) for b in problem.blocks.values()]
    return {"unused": problem.unused, "fingerprint": problem.fingerprint(), "size": problem.size, "blocks": blocks}


def equal(rank, size, folder):
    report = {}
    for name in CASE_NAMES:
        case = CASES[name]()
        problem = shared(case)
        report[name] = {
            "numbers": measured(problem),
            "facts": facts(problem),
            "own batches": len(problem.batches),
            "first example": problem.first_example,
            "ranks": problem.on_ranks(lambda: rank),
        }
        if rank == 0:  # without group= it asks nobody
            report[name]["alone"] = gt.Problem(
                case.problem.model, case.problem.objective.loss, case.problem.batches
            ).loss()
    return report


def trajectory_of(case, folder):
    """Three iterates of a case."""
    optimizer = torch.optim.SGD(case.problem.model.parameters(), lr=0.1)
    with gt.Recorder(folder, case.problem.model, optimizer, schedule=gt.every(1)):
        for _ in range(2):
            case.problem.gradient()
            optimizer.step()
    return folder


def recorded(rank, size, folder):
    """A trajectory measured together: one process writes, all have the results."""
    case = CASES["gpt"]()
    problem = shared(case)
    path = problem.on_ranks(lambda: trajectory_of(case, folder / "run") if rank == 0 else folder / "run")[0]
    results = gt.measure(path, problem, ["trace"], progress=False)
    again = gt.measure(path, problem, ["trace"], progress=False)
    return [
        {(m.step, m.statistic): {label: q.value for label, q in m.quantities.items()} for m in r.measurements}
        for r in (results, again)
    ]


def said(action, then=lambda: None):
    """The error that an action ends with, as text; `then()` is called while the error is still held."""
    try:
        action()
    except Exception as error:
        then()
        cause = f" <- {type(error.__cause__).__name__}" if error.__cause__ is not None else ""
        return f"{type(error).__name__}: {error}{cause}"
    return "no error"


def fail_on_the_side(problem):
    """What an operator may do on one process alone: try a strategy that fails, or run out of memory and try again."""
    with problem.session():
        try:
            with problem.session():
                raise NotImplementedError("no forward derivative")
        except NotImplementedError:
            pass
    try:
        with problem.session():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    except RuntimeError:
        pass


def refused(rank, size, folder):
    """Input that differs between processes; after each refusal the group is still of use."""
    case = CASES["gpt"]()
    report = {}

    def losses(model, batch):
        if rank == 1 and broken:
            raise KeyError("a hole in the data")
        return case.problem.objective.loss(model, batch)

    def make(**options):
        return gt.Problem(
            case.problem.model, losses, shard(list(case.problem.batches), dist.group.WORLD), group=group, **options
        )

    group, broken = dist.group.WORLD, True
    report["exception"] = said(make)
    broken = False
    report["params"] = said(lambda: make(params="embedding.*" if rank else None))
    report["blocks"] = said(lambda: make(blocks=False if rank else None))
    report["one shot"] = said(lambda: shared(case, iter([1]) if rank == 0 else []))
    report["empty"] = said(lambda: shared(case, []))
    report["pickle"] = said(lambda: __import__("cloudpickle").dumps(make()))
    report["not a group"] = said(lambda: gt.Problem(case.problem.model, losses, [], group="world"))
    problem = make()
    report["loss"] = problem.loss()
    wrapped = gt.Problem(nn.parallel.DistributedDataParallel(problem.model), losses, problem.batches, group=group)
    if rank == 0:
        fail_on_the_side(problem)
    report["after errors on the side"] = problem.loss()
    report["wrapped"] = wrapped.loss(), list(wrapped.layout)
    with torch.no_grad():
        problem.model.out.bias[rank] += 1e-7
    report["parameters"] = said(make)
    report["moved"] = said(problem.loss)
    return report


def products(rank, size, trouble):
    """Products without end, until process 1 makes trouble in the 20th."""
    case = CASES["gpt"]()
    batches = [case.problem.batches[rank % 2]]
    calls = 0

    def losses(model, batch):
        nonlocal calls
        calls += 1
        if rank == 1 and calls == 20:
            trouble()
        return case.problem.objective.loss(model, batch)

    problem = gt.Problem(case.problem.model, losses, batches, group=dist.group.WORLD)
    ggn = gt.GGN(problem, strategy="double-backward-fresh")  # the loss is evaluated in each product
    vector = problem.theta()
    print("started", flush=True)
    while True:
        ggn @ vector


def killed(rank, size, folder):
    """Process 1 of 4 is killed; its neighbours in the ring of gloo, 0 and 2, live on until 3 has noticed too."""

    def linger():
        if rank in (0, 2):
            wait_for(folder / "3.pt")

    return {"said": said(lambda: products(rank, size, lambda: os.kill(os.getpid(), signal.SIGKILL)), linger)}


def wait_for(path):
    began = time.monotonic()
    while not path.exists():
        assert time.monotonic() < began + 60, f"no {path.name} in sight"
        time.sleep(0.1)


def raised(rank, size, folder):
    def trouble():
        raise KeyError("a hole in the data")

    products(rank, size, trouble)


def caught(rank, size, folder):
    """Process 1 catches its own error and goes on with other products."""

    def trouble():
        raise KeyError("a hole in the data")

    report = {"said": said(lambda: products(rank, size, trouble))}
    if rank == 1:
        report["said"] = said(lambda: gt.GGN(shared(CASES["gpt"]())).dense())
    return report


def stuck(rank, size, folder):
    """Process 1 stops without a word, and wakes when process 0 has said so."""
    return {"said": said(lambda: products(rank, size, lambda: wait_for(folder / "0.pt")))}


def other_vectors(rank, size, folder):
    problem = shared(CASES["gpt"]())
    return {"said": said(lambda: gt.trace(gt.GGN(problem), seed=rank))}


SCENARIOS = {
    "equal 2": (equal, 2, 60),
    "equal 3": (equal, 3, 60),
    "recorded": (recorded, 2, 60),
    "refused": (refused, 2, 60),
    "killed": (killed, 4, 120),
    "raised": (raised, 2, 60),
    "caught": (caught, 2, 60),
    "stuck": (stuck, 2, 8),
    "other vectors": (other_vectors, 3, 60),
}
"""Function, number of processes, timeout in seconds."""


def process(function, rank, size, folder, timeout):
    """One process of a scenario: what it prints goes to RANK.log, what the function returns to RANK.pt."""
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", rank=rank, world_size=size, store=store, timeout=timedelta(seconds=timeout))
    torch.save(function(rank, size, folder), folder / f"{rank}.pt")
    dist.destroy_process_group()


def run(name, folder):
    """Forks the processes of a scenario, so that torch is imported only once, and writes their exit codes."""
    function, size, timeout = SCENARIOS[name]
    folder = Path(folder) / name
    folder.mkdir()
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                process(function, rank, size, folder, timeout)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (folder / "codes").write_text(" ".join(map(str, codes)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    measured(CASES["weighted_regression"]().problem)  # whatever torch imports on first use is imported once
    for scenario in sys.argv[2:] or SCENARIOS:
        began = time.monotonic()
        run(scenario, sys.argv[1])
        print(f"{scenario}: {time.monotonic() - began:.1f} s", flush=True)
