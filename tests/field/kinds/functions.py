"""Custom autograd functions: their second derivative is that of their backward pass, right or wrong."""

import torch
from field.entry import Situation, entries
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Good(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x * x


class OfItsOutput(Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class OfAnAttribute(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x * x
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class OfAnIntermediate(Function):
    @staticmethod
    def forward(ctx, x):
        s = x.sigmoid()
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors
        return g * (s + x * s * (1 - s))


class OfNumpy(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * torch.from_numpy(3 * x.detach().numpy() ** 2)


class OfDetached(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].detach().cos()


class Once(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class WrongGradient(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class BatchDependent(Function):
    """Its backward pass normalises by the whole batch."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / g.norm()


def using(function, name):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        return Situation(model, lambda m, b: function.apply(m(b)).square().sum(1), [torch.randn(5, 3).double()])

    make.__name__ = name
    return make


def inside_a_module(function, name):
    class Act(nn.Module):
        def forward(self, x):
            return function.apply(x)

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), Act(), nn.Linear(4, 2)).double()
        return Situation(model, lambda m, b: m(b).square().sum(1), [torch.randn(5, 3).double()])

    make.__name__ = name
    return make


ENTRIES = entries(
    [
        using(Good, "good"),
        using(OfItsOutput, "of_its_output"),
        (using(OfAnAttribute, "of_an_attribute"), "'OfAnAttribute' is likely to blame"),
        (using(OfAnIntermediate, "of_an_intermediate"), "'OfAnIntermediate' is likely to blame"),
        (inside_a_module(OfAnAttribute, "of_an_attribute_in_a_module"), "OfAnAttribute in '1' is likely to blame"),
        (using(OfNumpy, "of_numpy"), "OfNumpy|detach|numpy"),
        (using(OfDetached, "of_detached"), "'OfDetached' is likely to blame"),
        (using(Once, "once"), "Once, which is marked once_differentiable|differentiate twice"),
        (using(WrongGradient, "wrong_gradient"), "'WrongGradient' is likely to blame"),
        (using(BatchDependent, "batch_dependent"), "'BatchDependent' is likely to blame"),
    ]
)
