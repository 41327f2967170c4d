"""A CUDA device that is pretended on the CPU, to test what moves between devices where there is no GPU."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, CARD = torch.device("cpu"), torch.device("cuda")
ACROSS = {torch.Tensor.copy_, torch.Tensor.__setitem__, torch.Tensor.__getitem__}
WAITS = {getattr(torch.Tensor, name) for name in ("tolist", "item", "__bool__", "__float__", "__int__", "__index__")}


class OnCard(torch.Tensor):
    """A tensor that says it lies on the card."""


class PretendedCard(TorchFunctionMode):
    """Inside its `with` block tensors can be moved to and made on "cuda"; what mixes devices fails as it does there.

    Attributes:
        waits: How often something had to wait for the card's numbers.
        copies: Numbers moved to the card, and away from it.
    """

    def __init__(self):
        self.waits = 0
        self.copies = {"to": 0, "from": 0}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        on_card = [isinstance(x, OnCard) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim]
        if func == torch.Tensor.device.__get__:
            return CARD if isinstance(args[0], OnCard) else CPU
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return self._moved(func, args, kwargs)
        if len(set(on_card)) == 2 and func not in ACROSS:
            raise RuntimeError(f"Expected all tensors to be on the same device, in {func.__name__}")
        self.waits += func in WAITS and isinstance(args[0], OnCard)
        device = kwargs.pop("device", None)
        if device is None:
            device = CARD if any(isinstance(x, OnCard) for x in tree_leaves((args, kwargs))) else CPU
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        return tree_map(lambda x: placed(x, torch.device(device)), result)

    def _moved(self, func, args, kwargs):
        source = CARD if isinstance(args[0], OnCard) else CPU
        target = CPU if func is torch.Tensor.cpu else source
        rest = []
        for x in args[1:]:
            if isinstance(x, torch.Tensor):
                target = CARD if isinstance(x, OnCard) else CPU
                rest.append(x.dtype)
            elif isinstance(x, (str, torch.device)):
                target = torch.device(x)
            else:
                rest.append(x)
        target = torch.device(kwargs.pop("device", target))
        if target != source:
            self.copies["to" if target == CARD else "from"] += args[0].numel()
            self.waits += target == CPU
            kwargs["copy"] = True
        with torch._C.DisableTorchFunctionSubclass():
            result = torch.Tensor.to(args[0], *rest, **kwargs) if rest or kwargs else args[0]
        return placed(result, target)


def placed(value, device):
    """The value, if it is a tensor as one on that device."""
    if not isinstance(value, torch.Tensor) or isinstance(value, OnCard) == (device == CARD):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(OnCard if device == CARD else torch.Tensor)
