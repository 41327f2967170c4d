"""Diagonals and R_med as they were before the rooms around them were moved: three sums over each block."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from problems import PROBLEMS

import geomtraj as gt

HERE = Path(__file__).parent
MODELS = ("mlp", "cnn", "gpt", "rnn", "weighted_regression", "encoder_layer")
ESTIMATES = (
    ("probing", 4, 0), ("probing", 4, 1), ("probing", 40, 0), ("gauss_newton", 2, 0), ("gauss_newton", 2, 1),
    ("hutchinson", 4, 0), ("hutchinson", 4, 1), ("xdiag", 6, 0), ("xdiag", 6, 1),
)  # fmt: skip


def built(name: str) -> gt.Problem:
    torch.manual_seed(5)
    return PROBLEMS[name]()


def golden(kind: str) -> dict:
    return json.loads((HERE / f"golden_{kind}.json").read_text())


def sums(values: torch.Tensor) -> list[float]:
    """Sum, sum of magnitudes, and a sum with unequal weights, by which every entry and its place counts."""
    weights = torch.arange(values.numel(), dtype=torch.float64).add(1).mul(0.7310585786).cos()
    return [float(values.sum()), float(values.abs().sum()), float((weights * values.double()).sum())]


def exact(name: str) -> dict[str, list[float]]:
    problem = built(name)
    diagonal = gt.diagonal(problem, "exact")
    return {block: sums(diagonal.block(block)[0].flatten()) for block in problem.layout}


def estimates(name: str) -> dict[str, dict[str, list[float]]]:
    """By method, samples and seed: the sums of each block's entries and of their standard errors."""
    problem, found = built(name), {}
    for setting in ESTIMATES:
        diagonal = gt.diagonal(problem, *setting)
        pairs = {block: diagonal.block(block) for block in problem.layout}
        found[" ".join(map(str, setting))] = {
            b: [*sums(v.flatten()), *sums(e.flatten())] for b, (v, e) in pairs.items()
        }
    return found


def ratios(name: str) -> dict[str, list[float]]:
    return {k: [r.value, r.low, r.high] for k, r in gt.r_med(built(name), "exact").items()}


@pytest.mark.parametrize("name", MODELS)
def test_exact_diagonals_are_what_they_were(name):
    before, now = golden("exact")[name], exact(name)
    assert list(now) == list(before)
    scale = max(total for _, total, _ in before.values())
    for block, numbers in before.items():
        assert now[block] == pytest.approx(numbers, rel=1e-10, abs=1e-12 * scale)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_estimates_are_what_they_were(name):
    before, now = golden("estimates")[name], estimates(name)
    assert list(now) == list(before)
    for setting, blocks in before.items():
        assert list(now[setting]) == list(blocks)
        scale = max(numbers[1] for numbers in blocks.values())
        for block, numbers in blocks.items():
            assert now[setting][block] == pytest.approx(numbers, rel=1e-7, abs=1e-9 * scale), (setting, block)


@pytest.mark.parametrize("name", MODELS)
def test_r_med_of_exact_diagonals_is_what_it_was(name):
    before, now = golden("r_med")[name], ratios(name)
    assert list(now) == list(before)
    for label, numbers in before.items():
        assert now[label] == pytest.approx(numbers, rel=1e-8, nan_ok=True)


KINDS: dict[str, Callable[[str], dict]] = {"exact": exact, "estimates": estimates, "r_med": ratios}

if __name__ == "__main__":
    for title, make in KINDS.items():
        table = json.dumps({name: make(name) for name in MODELS}, indent=1)
        (HERE / f"golden_{title}.json").write_text(table + "\n")
