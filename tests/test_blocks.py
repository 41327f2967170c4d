"""Blocks against hand-made splits: what is in them, what they are called, and what cannot be split."""

import numpy as np
import pytest
import torch
from models import CASES
from torch import nn

import geomtraj as gt
from geomtraj.tasks.gpt import GPT


def squares(model, x):
    return model(x).flatten(1).square().sum(1)


def problem_of(model, *x, **options):
    return gt.Problem(model.double(), squares, [torch.randn(*x).double()], **options)


def small_gpt(**options):
    torch.manual_seed(0)
    model = GPT(vocabulary=7, context=5, layers=2, width=4, heads=2, **options)
    return gt.Problem(model, lambda m, x: m(x).square().mean(-1), [torch.randint(0, 7, (3, 5))])


def partition(problem):
    return torch.cat([block.indices for block in problem.blocks.values()]).sort().values


def test_every_parameter_is_a_block_but_fused_ones_are_three():
    problem = small_gpt()
    expected = []
    for name in problem.layout:
        expected += [f"{name}[{part}]" for part in "qkv"] if ".qkv." in name else [name]
    assert list(problem.blocks) == expected
    assert torch.equal(partition(problem), torch.arange(problem.size))
    theta = problem.theta()
    for name, p in problem.model.named_parameters():
        if ".qkv." in name:
            for part, values in zip("qkv", p.chunk(3), strict=True):
                block = problem.blocks[f"{name}[{part}]"]
                assert block.parameter == name and block.shape == values.shape and block.size == values.numel()
                assert torch.equal(block.take(theta), values.detach().flatten())
                assert torch.equal(theta[block.indices], block.take(theta))
                assert np.array_equal(block.take(theta.numpy()), block.take(theta).numpy())
    assert "[k] (4, 4)" in repr(problem.blocks)


def test_kinds_tell_matrices_from_embeddings_and_vectors():
    kinds = {name: block.kind for name, block in small_gpt(tied=True).blocks.items()}
    assert kinds.pop("embedding.weight") == kinds.pop("position.weight") == "embedding"
    assert {n for n, kind in kinds.items() if kind == "vector"} == {n for n in kinds if "norm" in n or "bias" in n}
    assert set(kinds.values()) == {"matrix", "vector"}


def test_an_operator_of_a_part_is_the_dense_hessians_submatrix():
    case = CASES["gpt"]()
    full, problem = case.hessian(), case.problem
    for globs in [
        "qkv.weight[k]",
        "*[q]",
        ["qkv.bias[v]", "norm.*", "qkv.weight"],
        "qkv.weight",
        "qkv.*",
        "out.weight",
    ]:
        chosen = problem.blocks.select(globs)
        rows = torch.cat([block.indices for block in chosen])
        part = gt.Hessian(problem).block(globs)
        assert torch.allclose(part.dense(), full[rows][:, rows], rtol=1e-9, atol=1e-12)
        assert part.layout.size == len(rows) and list(part.blocks) == [block.name for block in chosen]
        assert torch.allclose(gt.GGN(problem).block(globs).dense(), gt.GGN(problem).dense()[rows][:, rows])
        again = part.block(chosen[0].name)
        assert torch.equal(again.dense(), part.dense()[: chosen[0].size, : chosen[0].size])


def test_scalars_and_empty_parameters_are_blocks():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.none = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.empty(0, 3))
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            return self.scale * self.linear(x)

    problem = problem_of(Scaled(), 3, 2)
    assert [b.shape for b in problem.blocks.values()] == [(), (0, 3), (2, 2), (2,)]
    assert [b.size for b in problem.blocks.values()] == [1, 0, 4, 2]
    assert torch.equal(partition(problem), torch.arange(7))
    assert gt.Hessian(problem).block("scale").dense().shape == (1, 1)
    assert torch.isfinite(problem.loss()) and problem.gradient().shape == (7,)


@pytest.mark.parametrize("name", ["conv[0]", "a*b", "c?d", "e/f", "[!g]", "h[q]"])
def test_an_exact_name_wins_over_a_glob_whatever_is_in_it(name):
    model = nn.ModuleDict({name: nn.Linear(2, 2), "conv0": nn.Linear(2, 2), "aXb": nn.Linear(2, 2)}).double()
    problem = gt.Problem(
        model, lambda m, x: sum(part(x).square().sum(1) for part in m.values()), [torch.ones(3, 2).double()]
    )
    weight = f"{name}.weight"
    assert [block.name for block in problem.blocks.select(weight)] == [weight]
    assert list(gt.Hessian(problem).block(weight).layout) == problem.select(weight) == [weight]
    assert list(gt.Problem(model, problem._loss, problem.batches, params=weight).layout) == [weight]
