"""Losses that take derivatives themselves, write into their batch, or let examples depend on each other."""

import torch
from field.entry import Situation, entries
from torch import nn
from torch.nn import functional as F


def net(*middle, inputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 4), *middle, nn.Tanh(), nn.Linear(4, 1)).double()


def points(n=5, d=1):
    torch.manual_seed(1)
    return [torch.rand(n, d).double(), torch.rand(2, d).double()]


def residual(model, batch):
    t = batch.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(t).sum(), t, create_graph=True)
    return (slope - 1).square().sum(1)


def differential_equation():
    return Situation(net(), residual, points())


def differential_equation_on_the_batch_itself():
    def loss(model, batch):
        batch.requires_grad_()
        (slope,) = torch.autograd.grad(model(batch).sum(), batch, create_graph=True)
        return (slope - 1).square()[:, 0]

    return Situation(net(), loss, points())


def second_order_equation():
    def loss(model, batch):
        t = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(t).sum(), t, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), t, create_graph=True)
        return (bend + model(t)).square()[:, 0]

    return Situation(net(), loss, points())


def forces_by_func():
    def loss(model, batch):
        energy = lambda x: model(x[None]).sum()  # noqa: E731
        return torch.func.vmap(torch.func.grad(energy))(batch).square().sum(1)

    return Situation(net(inputs=2), loss, points(4, 2))


def laplacian_by_func():
    def loss(model, batch):
        energy = lambda x: model(x).sum()  # noqa: E731
        return torch.func.vmap(lambda x: torch.func.hessian(energy)(x).trace())(batch).square()

    return Situation(net(inputs=2), loss, points(4, 2))


def slope_by_forward_mode():
    def loss(model, batch):
        return torch.func.jvp(model, (batch,), (torch.ones_like(batch),))[1].square()[:, 0]

    return Situation(net(), loss, points())


def gradient_by_a_held_list():
    model = net()
    held = list(model.parameters())

    def loss(model, batch):
        losses = model(batch).square()[:, 0]
        slopes = torch.autograd.grad(losses.sum(), held, create_graph=True)
        return losses + 0.1 * sum(g.square().sum() for g in slopes)

    return Situation(model, loss, points(), apart=False)


def a_small_part_with_a_wrong_derivative():
    class Bent(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.slope = 3 * x * x
            return x * x * x

        @staticmethod
        def backward(ctx, g):
            return g * ctx.slope

    torch.manual_seed(0)
    model = nn.ModuleDict({"main": nn.Linear(3, 3), "aside": nn.Linear(3, 3)}).double()
    loss = lambda m, b: m["main"](b).square().sum(1) + 1e-6 * Bent.apply(m["aside"](b)).sin().sum(1)  # noqa: E731
    return Situation(model, loss, points(5, 3))


def decay_of_what_is_a_parameter():
    def loss(model, batch):
        decay = sum(p.square().sum() for p in model.parameters() if isinstance(p, nn.Parameter))
        return model(batch).square()[:, 0] + 0.1 * decay

    return Situation(net(), loss, points())


def gradient_penalty_through_layer_norm():
    return Situation(net(nn.LayerNorm(4), inputs=2), residual, points(4, 2))


def gradient_penalty_through_group_norm():
    return Situation(net(nn.GroupNorm(2, 4), inputs=2), residual, points(4, 2))


def gradient_penalty_through_instance_norm():
    class Rows(nn.Module):
        def forward(self, x):
            return F.instance_norm(x[:, None])[:, 0]

    return Situation(net(Rows(), inputs=2), residual, points(4, 2))


def inner_step():
    """One step of gradient descent on the batch, as in meta-learning."""

    def loss(model, batch):
        names, values = zip(*model.named_parameters(), strict=True)
        inner = model(batch).square().mean()
        grads = torch.autograd.grad(inner, values, create_graph=True)
        stepped = {n: p - 0.1 * g for n, p, g in zip(names, values, grads, strict=True)}
        return torch.func.functional_call(model, stepped, (batch,)).cos()[:, 0]

    return Situation(net(), loss, points(), apart=False)


def labels_written():
    def loss(model, batch):
        x, y = batch
        y[y == 0] = -100
        return F.cross_entropy(model(x), y, reduction="none"), (y != -100).double()

    torch.manual_seed(0)
    model = nn.Linear(2, 3).double()
    return Situation(model, loss, [(torch.randn(6, 2).double(), torch.arange(6) % 3)])


def inputs_clamped():
    def loss(model, batch):
        return model(batch.clamp_(0.2, 0.5)).square()[:, 0]

    return Situation(net(), loss, points())


def inputs_scaled():
    def loss(model, batch):
        return model(batch.div_(2)).square()[:, 0]

    return Situation(net(), loss, points())


def fields_taken_out():
    def loss(model, batch):
        y = batch.pop("y")
        batch["x"] += 1
        return (model(batch["x"])[:, 0] - y).square()

    (x, more), y = points(), torch.rand(7).double()
    return Situation(net(), loss, [{"x": x, "y": y[:5]}, {"x": more, "y": y[5:]}])


def spread_over_the_batch():
    def loss(model, batch):
        z = model(batch)[:, 0]
        return (z / z.std() - 1).square()

    return Situation(net(), loss, [points()[0]], apart=False)


def sorted_over_the_batch():
    def loss(model, batch):
        z = model(batch)[:, 0]
        return (z.sort().values - z.roll(1)).square()

    return Situation(net(), loss, [points()[0]], apart=False)


def coupled_by_second_derivatives_alone():
    def loss(model, batch):
        z = model(batch)
        q = z.roll(2, 0)
        return z.sum(1) ** 2 + ((z - z.detach()) * (q - q.detach())).sum(1)

    torch.manual_seed(0)
    return Situation(nn.Linear(3, 2).double(), loss, [torch.randn(8, 3).double()], apart=False)


def stop_gradient():
    def loss(model, batch):
        z = model(batch)[:, 0]
        return (z - 0.5 * z.detach().exp()).square()

    return Situation(net(), loss, points())


def straight_through():
    def loss(model, batch):
        z = model(batch)[:, 0]
        return (z + (z.round() - z).detach() - 0.3).square()

    return Situation(net(), loss, points())


def flattened_tokens():
    torch.manual_seed(0)
    tokens = torch.randint(0, 5, (6, 9))
    loss = lambda m, b: F.cross_entropy(m(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten(), reduction="none")  # noqa: E731
    return Situation(nn.Embedding(5, 5).double(), loss, [tokens])


def flattened_tokens_of_one_sequence():
    situation = flattened_tokens()
    situation.batches = [situation.batches[0][:1]]
    return situation


def dropout_by_function():
    loss = lambda m, b: F.dropout(m(b), 0.5)[:, 0]  # noqa: E731
    return Situation(net(), loss, points())


def cached_graph():
    """Numbers that do not come from the model that is passed in."""
    model = net()
    held = model(points()[0]).detach()
    return Situation(model, lambda m, b: held[:, 0] + 0 * b.sum(), [points()[0]])


ENTRIES = entries(
    [
        differential_equation,
        differential_equation_on_the_batch_itself,
        second_order_equation,
        forces_by_func,
        laplacian_by_func,
        slope_by_forward_mode,
        gradient_by_a_held_list,
        decay_of_what_is_a_parameter,
        (a_small_part_with_a_wrong_derivative, "'aside.*Bent|Bent.* is likely to blame"),
        gradient_penalty_through_layer_norm,
        gradient_penalty_through_group_norm,
        gradient_penalty_through_instance_norm,
        inner_step,
        labels_written,
        inputs_clamped,
        inputs_scaled,
        fields_taken_out,
        spread_over_the_batch,
        sorted_over_the_batch,
        (coupled_by_second_derivatives_alone, "second derivatives are not .* hides a part of it"),
        (stop_gradient, "is not the derivative of the loss"),
        (straight_through, "is not the derivative of the loss"),
        (flattened_tokens, r"6 rows went into .* 48 losses came out.*reshape\(6, 8\)"),
        (flattened_tokens_of_one_sequence, r"1 rows? went into .* 8 losses came out"),
        (dropout_by_function, "draws random numbers"),
        (cached_graph, "no selected parameter reaches the loss"),
    ]
)
