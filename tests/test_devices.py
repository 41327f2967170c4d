"""Nothing mixes devices: what is measured on a pretended accelerator agrees with the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WRONG = """
import torch
from tests.pretended_device import register
kept = register()
x = torch.ones(3, device="sim")
for wrong in (
    lambda: x + torch.ones(3),
    lambda: torch.randn(3, generator=torch.Generator(), device="sim"),
):
    try:
        wrong()
    except RuntimeError as error:
        print("refused:", error)
"""


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_another_device_gives_the_same_numbers():
    result = run("-m", "tests.pretended_device", "mlp", "cnn")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("same: ") > 80


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    result = run("-c", WRONG)
    assert result.stdout.count("refused: Expected") == 2, result.stdout + result.stderr
