"""Recorded linear functions give what the functions themselves give, in fewer operations."""

import pytest
import torch
from torch.nn import functional as F

from geomtraj.errors import ComputationError
from geomtraj.operators.hvp.recording import record
from geomtraj.operators.hvp.simplifying import held_bytes, out_of_place, simplify

A = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
B = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5


def into_zeros(v):
    total = torch.zeros_like(v[0])
    total.add_(v[0])
    total.mul_(3)
    return [total / B]


def into_ones(v):
    total = torch.ones_like(v[0])
    total.mul_(v[0])
    return [total * A]


def many_passes(v):
    x = v[0] * A * 2 - v[0] / B
    x = -(x.reshape(12) * A.reshape(12)).view(4, 3)
    return [x + torch.where(A > 0, x, 0.0) + x.sum(1, keepdim=True) * B]


def transposed(v):
    left, right = v[0].t() * A.t(), (v[0] * B).transpose(0, 1)
    return [left + right, (left @ v[0].new_ones(4, 2)).unsqueeze(0)]


def broadcast(v):
    row = v[0].sum(0, keepdim=True) * B[:1]
    return [row.expand(4, 3) * A, row + v[0] * 0.5]


def split_in_place(v):
    first, second = torch.unsafe_split(v[0] * 1, 2)
    first.mul_(2)
    return [first * A[:2] + second.copy_(first) * B[:2]]


FUNCTIONS = [into_zeros, into_ones, many_passes, transposed, broadcast, split_in_place]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_recording_is_the_function(function):
    program = simplify(record(function, [torch.zeros_like(A)]))
    for seed in (1, 2):
        vector = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for found, expected in zip(program(vector), function([vector.clone()]), strict=True):
            assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)
    rows = torch.randn(5, 4, 3, dtype=torch.float64)
    for found, expected in zip(torch.func.vmap(out_of_place(program))(rows), program(rows[3]), strict=True):
        assert torch.allclose(found[3], expected, rtol=1e-13, atol=1e-13)


def test_constants_are_multiplied_beforehand():
    program = simplify(record(lambda v: [v[0] * A * 2 / B - F.relu(A) * v[0]], [torch.zeros_like(A)]))
    assert [node.op for node in program.graph.nodes].count("call_function") == 1
    assert held_bytes(program) == A.numel() * 8


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda v: [v[0] * v[0]], "not linear"),
        (lambda v: [v[0] + 1], "not linear"),
        (lambda v: [v[0] * float(v[0].sum())], r"\.item\(\)"),
        (lambda v: [(y := v[0] * 2), y[1].mul_(2)][:1], "shared tensor"),
    ],
)
def test_what_is_not_linear_or_not_recordable_is_refused(function, message):
    with pytest.raises(ComputationError, match=message):
        simplify(record(function, [torch.zeros_like(A)]))
