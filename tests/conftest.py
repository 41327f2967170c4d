"""One thread for every test: the tensors are small, and sums then come out the same on every machine."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
