"""Models of the size that people train, untrained and on random data: a product's cost does not depend on values."""

from __future__ import annotations

import torch
from common import Flattened, Trained
from torch import Tensor, nn

import geomtraj as gt
from geomtraj.tasks.gpt import GPT

BATCH = 8
VOCABULARY, CONTEXT = 50_257, 64


class Block(nn.Module):
    """Two convolutions with batch normalisation and a shortcut (He, Zhang, Ren, Sun 2016, ResNet-18)."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels, H / stride, W / stride)."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet18(classes: int = 10) -> nn.Module:
    """ResNet-18 for images of 32 x 32: a 3 x 3 convolution first, no pooling after it; 11.2 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(before, channels, stride), Block(channels, channels, 1)]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def resnet() -> tuple[nn.Module, Tensor, Tensor]:
    """The model in evaluation mode, with statistics of the data; images and labels."""
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    model = resnet18()
    with torch.no_grad():
        for _ in range(20):
            model(x)
    return model.eval(), x, y


def gpt() -> tuple[nn.Module, Tensor, Tensor]:
    """A GPT-2 of 12 layers and width 768, and one sequence: 124 million parameters with tied embeddings."""
    tokens = torch.randint(VOCABULARY, (1, CONTEXT + 1))
    model = GPT(VOCABULARY, CONTEXT, layers=12, width=768, heads=12, tied=True)
    return Flattened(model).eval(), tokens[:, :-1], tokens[:, 1:].flatten()


LARGE = {"resnet-11M": resnet, "gpt-124M": gpt}


class Large(Trained):
    """A model of `LARGE`."""

    @property
    def tokens(self) -> bool:
        """Whether an example has a label at each position."""
        return isinstance(self.model, Flattened)


def large(name: str) -> Large:
    """The model `name` and its batch; the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x, y = LARGE[name]()
    problem = gt.Problem(
        model, lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1], reduction="none"), [(x, y)]
    )
    return Large(name, problem, model, [(x, y)])
