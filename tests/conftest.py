"""One thread for every test: the tensors are small, and sums then come out the same on every machine."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


def pytest_addoption(parser):
    """How many attacks of each kind tests/attacks makes: hundreds of mutated files by default."""
    parser.addoption("--attacks", type=int, default=150, help="Attacks of each kind in tests/attacks.")
