"""What parameters and buffers are called: one name each, whatever a model or a part of it is wrapped in."""

from __future__ import annotations

from torch import Tensor, nn

COMPILED = "_orig_mod"
"""Where torch.compile keeps the module that it wraps."""


def unwrap(model: nn.Module) -> nn.Module:
    """The module itself, without the wrappers of torch.compile and (Distributed)DataParallel, in whatever order."""
    while True:
        inner = getattr(model, COMPILED, None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def clean_name(name: str) -> str:
    """A name without the part that torch.compile puts into those of compiled submodules."""
    return name.replace(f"{COMPILED}.", "")


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its first name, in the model's order; tied ones once."""
    return {clean_name(name): p for name, p in unwrap(model).named_parameters()}


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Every buffer by its first name, in the model's order, the non-persistent ones included."""
    return {clean_name(name): buffer for name, buffer in unwrap(model).named_buffers()}


def aliases(model: nn.Module) -> dict[str, str]:
    """Further names of tied parameters: alias -> first name."""
    first = {id(parameter): name for name, parameter in named_parameters(model).items()}
    every = [(clean_name(name), p) for name, p in unwrap(model).named_parameters(remove_duplicate=False)]
    return {name: first[id(p)] for name, p in every if name != first[id(p)]}


def places(model: nn.Module) -> dict[str, str]:
    """Name of each parameter and buffer -> where it stands in the model itself."""
    model = unwrap(model)
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {clean_name(name): name for name, _ in every}
