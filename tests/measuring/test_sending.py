import pytest
import torch
from torch import nn

import geomtraj as gt


class Tracker:
    def __init__(self):
        self.calls = []

    def log(self, numbers, step=None):
        self.calls.append((step, numbers))


def test_results_are_handed_to_a_logger_in_the_order_of_steps(tmp_path):
    model = nn.Linear(3, 2)
    problem = gt.Problem(model, nn.MSELoss(), [(torch.ones(4, 3), torch.ones(4, 2))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gt.Recorder(tmp_path / "run", model, optimizer, gt.every(1)) as recorder:
        while recorder.step < 3:
            model(torch.ones(4, 3)).sum().backward()
            optimizer.step()
        with torch.no_grad():
            model.weight.fill_(float("nan"))
        optimizer.step()
    first = gt.measure(tmp_path / "run", problem, ["trace"], progress=False, max_seconds=1e-9)
    assert len(first) < 8
    tracker = Tracker()
    results = gt.measure(tmp_path / "run", problem, ["trace"], progress=False, logger=tracker)
    assert [step for step, _ in tracker.calls] == [0, 1, 2, 3], "the last iterate has no finite number"
    for step, numbers in tracker.calls:
        traces = {m.step: m.quantities["trace"].value for m in results.of("trace") if m.quantities}
        assert (numbers["loss/loss"], numbers["trace/trace"]) == (results.losses()[step], traces[step])
        assert numbers.keys() == {f"{m.statistic}/{k}" for m in results.measurements for k in m.quantities}
        assert all(type(value) is float for value in numbers.values())
    with pytest.raises(gt.InputError, match="logger is a list without a method log"):
        gt.measure(tmp_path / "run", problem, ["trace"], progress=False, logger=[])
