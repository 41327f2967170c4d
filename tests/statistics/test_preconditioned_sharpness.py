import math

import pytest
import torch
from standing import at, classification, quadratic, trained
from torch import nn

import geomtraj as gt
from geomtraj.statistics import REGISTRY
from geomtraj.statistics.preconditioners import averaged, heavy, nesterov


def measured(tmp_path, problem, make, step=4, name="run"):
    run = trained(tmp_path / name, problem, make)
    with at(run, problem, step) as point:
        outcome = REGISTRY["preconditioned_sharpness"](tol=1e-8).measure(point)
    return run.at_step(step), outcome


def flat(iterate, key):
    state = iterate.optimizer_state["state"]
    return torch.cat([state[i][key].reshape(-1) for i in sorted(state)])


PRECONDITIONERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1), lambda i: torch.ones(1), 2 / 0.1),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda i: torch.ones(1), 3.8 / 0.1),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-4),
             lambda i: (flat(i, "exp_avg_sq") / (1 - 0.999**4)).sqrt() + 1e-4, 38 / 0.01),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.99), weight_decay=0.5),
              lambda i: (flat(i, "exp_avg_sq") / (1 - 0.99**4)).sqrt() + 1e-8, (2 / 0.01 - 0.5) * 1.8 / 0.2),
    "amsgrad": (lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
                lambda i: (flat(i, "max_exp_avg_sq") / (1 - 0.999**4)).sqrt() + 1e-8, 38 / 0.01),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
                lambda i: flat(i, "square_avg").sqrt() + 1e-8, 3 / 0.01),
    "centered": (lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
                 lambda i: (flat(i, "square_avg") - flat(i, "grad_avg").square()).sqrt() + 1e-8, 2 / 0.01),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1),
                lambda i: flat(i, "sum").sqrt() + 1e-10, 2 * 1.4 / 0.1),
    "adamax": (lambda p: torch.optim.Adamax(p, lr=0.01), lambda i: flat(i, "exp_inf"), 38 / 0.01),
    "adadelta": (lambda p: torch.optim.Adadelta(p, lr=0.5),
                 lambda i: (flat(i, "square_avg") + 1e-6).sqrt() / (flat(i, "acc_delta") + 1e-6).sqrt(), 2 / 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_against_the_dense_preconditioned_hessian(tmp_path, name):
    make, preconditioner, threshold = PRECONDITIONERS[name]
    problem = classification()
    iterate, outcome = measured(tmp_path, problem, lambda m: make(m.parameters()))
    P = preconditioner(iterate).expand(problem.size)
    H = gt.Hessian(problem, iterate.theta).dense()
    values = torch.linalg.eigvalsh(H / (P[:, None] * P).sqrt())
    q = outcome.quantities
    assert outcome.status == "ok" and q.keys() == {"sharpness", "threshold"}
    assert q["sharpness"].value == pytest.approx(float(values[-1]), rel=1e-6)
    assert q["sharpness"].low <= float(values[-1]) * (1 + 1e-12) and q["sharpness"].high >= float(values[-1])
    assert q["threshold"].value == pytest.approx(threshold)


def test_groups_with_other_rates_have_one_boundary(tmp_path):
    problem = classification()

    def make(model):
        first, second = model[0].parameters(), model[2].parameters()
        return torch.optim.SGD([{"params": first, "lr": 0.3}, {"params": second, "momentum": 0.5}], lr=0.1)

    iterate, outcome = measured(tmp_path, problem, make)
    rates = torch.cat([torch.full((30,), 2 / 0.3), torch.full((21,), 3 / 0.1)]).double()
    values = torch.linalg.eigvalsh(gt.Hessian(problem, iterate.theta).dense() / (rates[:, None] * rates).sqrt())
    found = outcome.quantities
    assert found["threshold"].value == pytest.approx(2 / 0.3)
    assert found["sharpness"].value / found["threshold"].value == pytest.approx(float(values[-1]), rel=1e-6)


if hasattr(torch.optim, "Muon"):

    def test_muon_divides_by_what_takes_its_momentum_to_the_step(tmp_path):
        problem = classification()
        lr = 0.02

        def make(model):
            return [
                torch.optim.Muon([model[0].weight, model[2].weight], lr=lr, weight_decay=0.0),
                torch.optim.SGD([model[0].bias, model[2].bias], lr=1e-9),
            ]

        iterate, outcome = measured(tmp_path, problem, make)
        inverse = torch.zeros(problem.size, problem.size).double()
        names = ["0.weight", "2.weight"]
        for index, name in enumerate(names):
            slot = problem.layout[name]
            M = iterate.optimizer_state[0]["state"][index]["momentum_buffer"]
            step = torch.optim._muon._zeropower_via_newtonschulz(M, (3.4445, -4.7750, 2.0315), 5, 1e-7).double()
            rows, columns = slot.shape
            if rows <= columns:
                block = torch.kron(step @ torch.linalg.pinv(M.double()), torch.eye(columns).double())
            else:
                block = torch.kron(torch.eye(rows).double(), (torch.linalg.pinv(M.double()) @ step).T.contiguous())
            inverse[slot.slice, slot.slice] = block * math.sqrt(max(1.0, rows / columns))
        H = gt.Hessian(problem, iterate.theta).dense()
        top = torch.linalg.eigvals(inverse @ H).real.max()
        found = outcome.quantities
        assert found["threshold"].value == pytest.approx(nesterov(averaged(0.95), 0.95) / lr)
        assert found["sharpness"].value == pytest.approx(float(top), rel=0.05)  # torch iterates in bfloat16


def simulated(make, curvature, steps=2000):
    """Whether an optimizer diverges on a one-dimensional quadratic, so near its bottom that eps preconditions."""
    theta = nn.Parameter(torch.full((1,), 1e-12).double())
    optimizer = make([theta])
    for step in range(steps):
        theta.grad = (curvature if step > 300 else 0.0) * theta.detach()  # until bias corrections are over
        optimizer.step()
        if step == 300:
            theta.data.fill_(1e-12)
        if not theta.abs() < 1e-6:
            return True
    return False


@pytest.mark.parametrize(
    ("make", "threshold"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 2 / 0.1),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=5.0), 2 / 0.1 - 5),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8), heavy(0.8) / 0.1),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.8), averaged(0.8) / 0.1),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True), nesterov(heavy(0.8), 0.8) / 0.1),
        (lambda p: torch.optim.Adam(p, lr=0.1, eps=1.0), 38 / 0.1),
        (lambda p: torch.optim.AdamW(p, lr=0.1, eps=1.0, weight_decay=1.0), (2 / 0.1 - 1) * 19),
        (lambda p: torch.optim.NAdam(p, lr=0.1, eps=1.0, momentum_decay=1e3), nesterov(averaged(0.9), 0.9) / 0.1),
    ],
    ids=["descent", "decay", "heavy", "averaged", "nesterov", "adam", "adamw", "nadam"],
)
def test_thresholds_are_where_training_becomes_unstable(make, threshold, tmp_path):
    assert not simulated(make, 0.98 * threshold) and simulated(make, 1.02 * threshold)
    problem, _ = quadratic(d=1)
    run = trained(tmp_path / "run", problem, lambda m: make(list(m.parameters())), 1)
    with at(run, problem, 1) as point:
        outcome = REGISTRY["preconditioned_sharpness"]().measure(point)
    assert outcome.quantities["threshold"].value == pytest.approx(threshold)


def test_reasons(tmp_path):
    problem = classification()
    run = trained(tmp_path / "adam", problem, lambda m: torch.optim.Adam(m.parameters()))
    with at(run, problem, 0) as point:
        outcome = REGISTRY["preconditioned_sharpness"]().measure(point)
    assert not outcome.quantities and "no step was taken" in outcome.status
    run = trained(tmp_path / "rprop", problem, lambda m: torch.optim.Rprop(m.parameters()))
    with at(run, problem, 2) as point:
        outcome = REGISTRY["preconditioned_sharpness"]().measure(point)
    assert not outcome.quantities and "no preconditioner is known of Rprop" in outcome.status
