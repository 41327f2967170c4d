"""Parameters that reach a layer by way of others: torch's fused weight_norm has a wrong second derivative."""

import torch
from field.entry import Situation, entries
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as legacy_weight_norm


def regression(model, shape=(5, 3)):
    torch.manual_seed(1)
    return Situation(model.double(), lambda m, b: m(b).flatten(1).tanh().square().sum(1), [torch.randn(shape).double()])


def seeded(make):
    torch.manual_seed(0)
    return make()


def weight_norm():
    return regression(seeded(lambda: parametrizations.weight_norm(nn.Linear(3, 2))))


def weight_norm_legacy():
    return regression(seeded(lambda: legacy_weight_norm(nn.Linear(3, 2))))


def weight_norm_of_a_convolution():
    return regression(seeded(lambda: parametrizations.weight_norm(nn.Conv1d(2, 2, 2))), (4, 2, 3))


def weight_norm_along_columns():
    return regression(seeded(lambda: parametrizations.weight_norm(nn.Linear(3, 2), dim=1)))


def weight_norm_of_all_entries():
    return regression(seeded(lambda: parametrizations.weight_norm(nn.Linear(3, 2), dim=None)))


def weight_norm_called_by_the_user():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.v, self.g = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.ones(2, 1))

        def forward(self, x):
            return x @ torch._weight_norm(self.v, self.g, 0).T

    return regression(seeded(Direct))


def weight_norm_inside_a_network():
    layers = [parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh(), legacy_weight_norm(nn.Linear(3, 2))]
    return regression(seeded(lambda: nn.Sequential(*layers)))


def spectral_norm():
    return regression(seeded(lambda: parametrizations.spectral_norm(nn.Linear(3, 2))))


def orthogonal():
    return regression(seeded(lambda: parametrizations.orthogonal(nn.Linear(3, 2), orthogonal_map="cayley")))


def positive_by_exp():
    class Exp(nn.Module):
        def forward(self, x):
            return x.exp()

    layer = seeded(lambda: nn.Linear(3, 2))
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Exp())
    return regression(layer)


def pruned():
    layer = seeded(lambda: nn.Linear(3, 2))
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return regression(layer)


ENTRIES = entries(
    [
        weight_norm, weight_norm_legacy, weight_norm_of_a_convolution, weight_norm_along_columns,
        weight_norm_of_all_entries, weight_norm_called_by_the_user, weight_norm_inside_a_network, spectral_norm,
        orthogonal, positive_by_exp, pruned,
    ]
)  # fmt: skip
