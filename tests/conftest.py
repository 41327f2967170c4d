"""One number of threads for every test, and nothing of geomtraj may change the global state behind a test's back."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    torch.set_num_threads(2)
