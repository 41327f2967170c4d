"""What the user has around the calls changes no number."""

import contextlib

import torch
from field.entry import Situation, entries
from torch import nn


def within(around, name):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        batches = [torch.randn(4, 3).double(), torch.randn(2, 3).double()]
        return Situation(model, lambda m, b: m(b).square().sum(1), batches, around=around)

    make.__name__ = name
    return make


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def without_gradients():
    """A loss that asks whether gradients are on."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()

    def loss(model, batch):
        z = model(batch)
        return (z if torch.is_grad_enabled() else z.detach()).square().sum(1)

    return Situation(model, loss, [torch.randn(4, 3).double()], around=torch.no_grad)


ENTRIES = entries(
    [
        within(torch.inference_mode, "inference_mode"),
        within(torch.no_grad, "no_grad"),
        within(lambda: torch.autocast("cpu", torch.bfloat16), "autocast"),
        within(default_dtype, "another_default_dtype"),
        within(lambda: torch.device("meta"), "another_default_device"),
        within(lambda: torch.autograd.set_detect_anomaly(True), "anomaly_detection"),
        without_gradients,
    ]
)
