"""Exact diagonals as they were before the rooms around them were moved: three sums over each block."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from problems import PROBLEMS

import geomtraj as gt

GOLDEN = Path(__file__).parent / "golden_exact.json"
MODELS = ("mlp", "cnn", "gpt", "rnn", "weighted_regression", "encoder_layer")


def sums(values: torch.Tensor) -> list[float]:
    """Sum, sum of magnitudes, and a sum with unequal weights, by which every entry and its place counts."""
    weights = torch.arange(values.numel(), dtype=torch.float64).add(1).mul(0.7310585786).cos()
    return [float(values.sum()), float(values.abs().sum()), float((weights * values.double()).sum())]


def found(name: str) -> dict[str, list[float]]:
    torch.manual_seed(5)
    problem = PROBLEMS[name]()
    diagonal = gt.diagonal(problem, "exact")
    return {block: sums(diagonal.block(block)[0].flatten()) for block in problem.layout}


@pytest.mark.parametrize("name", MODELS)
def test_exact_diagonals_are_what_they_were(name):
    golden = json.loads(GOLDEN.read_text())[name]
    now = found(name)
    assert list(now) == list(golden)
    scale = max(total for _, total, _ in golden.values())
    for block, numbers in golden.items():
        assert now[block] == pytest.approx(numbers, rel=1e-10, abs=1e-12 * scale)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: found(name) for name in MODELS}, indent=1) + "\n")
