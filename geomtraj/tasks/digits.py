"""Handwritten digits, 8 x 8 pixels: the negative control on images, as a CNN and as an MLP."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtraj.errors import InputError
from geomtraj.seeding import generator
from geomtraj.tasks.base import Task

MICRO_BATCH = 128


def class_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy in nats of each image, shape (B,)."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, reduction="none")


class CNN(nn.Module):
    """Two 3 x 3 convolutions with ReLU, 2 x 2 pooling, one linear layer."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, 10), for images (B, 1, 8, 8)."""
        x = F.relu(self.conv2(F.relu(self.conv1(images))))
        return self.head(F.max_pool2d(x, 2).flatten(1))


class MLP(nn.Module):
    """Linear layers with ReLU between them, `layers` of them hidden."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        sizes = [64, *[width] * layers]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, 10), for images (B, 1, 8, 8)."""
        x = images.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.head(x)


class Digits(Task):
    """scikit-learn's 1,797 digits, `eval_examples` of them (one fixed draw) kept out of training."""

    default_steps = 300
    loss = staticmethod(class_losses)

    def __init__(self, **options):
        super().__init__(**options)
        if self.options["eval_examples"] > 1000:
            raise InputError("eval_examples must leave images to train on: choose at most 1000 of the 1797.")
        self._data  # noqa: B018  a missing scikit-learn is told before any work

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Random training images (B, 1, 8, 8) and their labels (B,)."""
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
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError(
                f"task {self.name} needs scikit-learn ({error}): install it with pip install 'geomtraj[tasks]'."
            ) from error
        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=generator(0, "order of digits"))
        images = torch.as_tensor(pixels, dtype=self.dtype).reshape(-1, 1, 8, 8) / 8 - 1
        return images[order], torch.as_tensor(labels, dtype=torch.int64)[order]


class DigitsCNN(Digits):
    """The digits with a small CNN of about 10,000 parameters.

    Options: width (channels of the first convolution), batch_size, eval_examples, device, dtype.
    """

    name = "digits-cnn"
    defaults = {"width": 16, "batch_size": 64, "eval_examples": 256}  # noqa: RUF012

    def build(self) -> nn.Module:
        """The CNN."""
        return CNN(self.options["width"])


class DigitsMLP(Digits):
    """The digits with an MLP of about 9,000 parameters.

    Options: width and layers (of the hidden part), batch_size, eval_examples, device, dtype.
    """

    name = "digits-mlp"
    defaults = {"width": 64, "layers": 2, "batch_size": 64, "eval_examples": 256}  # noqa: RUF012

    def build(self) -> nn.Module:
        """The MLP."""
        return MLP(self.options["width"], self.options["layers"])
