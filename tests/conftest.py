"""One thread for every test: the tensors are small, and sums then come out the same on every machine."""

import pytest
import torch

from geomtraj import statistics, tasks, updates
from geomtraj.training import optimizers


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def registries():
    """As they were, after each test: what one registers is not there for the next."""
    held = [(r, dict(r)) for r in (statistics.REGISTRY, tasks.REGISTRY, optimizers.REGISTRY, updates.FACTORIES)]
    yield
    for registry, before in held:
        registry.clear()
        registry.update(before)


def pytest_addoption(parser):
    """How many attacks of each kind tests/attacks makes: hundreds of mutated files by default."""
    parser.addoption("--attacks", type=int, default=150, help="Attacks of each kind in tests/attacks.")
