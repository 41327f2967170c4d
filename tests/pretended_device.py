"""A pretended accelerator, and what is measured on it beside the same on the CPU; run as a program by test_devices.py.

Tensors of the device "sim" lie in CPU memory, and every operation runs on the CPU; but an operation that mixes them
with tensors of the CPU fails as it does on a GPU (in a backward pass the program ends), and so does a CPU generator
that is to fill one. Forward-mode derivatives are not pretended: torch makes their zeros where Python cannot see it.
The registration is for good, which is why this is a program.

Source of the registration: the docstring of torch.utils.backend_registration._setup_privateuseone_for_python_backend.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
ACROSS = {"aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::index", "aten::index_put_", "aten::index_put"}
CPU = torch.device("cpu")


class SimTensor(torch.Tensor):
    """A tensor that says it lies on the device; `raw` is what it holds."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw):
        where = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype, "device": "sim:0"}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.size(), **where)
        made.raw = raw
        return made

    def __getitem__(self, index):
        return torch.Tensor.__getitem__(self, indices(index))

    def __setitem__(self, index, value):
        torch.Tensor.__setitem__(self, indices(index), value)

    def __deepcopy__(self, memo):
        return SimTensor(self.raw.clone()).requires_grad_(self.requires_grad)

    def tolist(self):
        return self.raw.tolist()

    def untyped_storage(self):
        return self.raw.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, *args, **(kwargs or {}))


def indices(index):
    """Lists among the indices as tensors: torch's own conversion happens where Python cannot see it."""
    if isinstance(index, list):
        return torch.tensor(index, dtype=None if index else torch.int64)
    return tuple(map(indices, index)) if isinstance(index, tuple) else index


def run(func, *args, **kwargs):
    """One operation: refused where it mixes devices, else done on the CPU."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, SimTensor)]
    target = kwargs.get("device")
    on_sim = bool(here) if target is None else torch.device(target).type == "sim"
    if here and any(not isinstance(x, SimTensor) and x.dim() for x in tensors) and func._schema.name not in ACROSS:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found sim:0 and cpu in {func}")
    if on_sim and any(isinstance(x, torch.Generator) for x in leaves):
        raise RuntimeError(f"Expected a 'sim' device type for generator but found 'cpu' in {func}")
    changed = {id(x.raw): x for x in here}
    args, kwargs = pytree.tree_map(lambda x: x.raw if isinstance(x, SimTensor) else x, (args, kwargs))
    if target is not None:
        kwargs["device"] = CPU
    result = func(*args, **kwargs)
    if func is aten._to_copy.default and result is args[0]:
        result = result.clone()
    if func is aten.copy_.default and not (here and here[0].raw is args[0]):
        return result

    def back(x):
        return changed.get(id(x), SimTensor(x) if on_sim else x) if isinstance(x, torch.Tensor) else x

    return pytree.tree_map(back, result)


def made_there(op):
    """A factory whose composite kernel would make an empty tensor and grow it."""

    def make(*args, **kwargs):
        return SimTensor(op(*args, **{**kwargs, "device": CPU, "pin_memory": None}))

    return make


def register():
    """Makes the device known to torch, for good."""
    _setup_privateuseone_for_python_backend("sim")
    everything, factories = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(lambda func, *args, **kwargs: run(func, *args, **kwargs), "PrivateUse1")
    for name in ("arange", "arange.start", "arange.start_step", "eye", "eye.m"):
        op = getattr(getattr(aten, name.split(".")[0]), name.partition(".")[2] or "default")
        factories.impl(name, made_there(op), "PrivateUse1")
    torch.__future__.set_swap_module_params_on_conversion(True)
    plain = torch.tensor

    def tensor(data, *args, device=None, **kwargs):
        found = plain(data, *args, **kwargs)
        return found if device is None else found.to(device)

    torch.tensor = tensor
    return everything, factories  # they must live


def main(names):
    """Measures models of tests/models.py, trains and measures a task, here and there; fails on a difference."""
    import geomtraj as gt
    from geomtraj import tasks
    from geomtraj.training import train
    from tests import models

    def same(what, there, here, tolerance=1e-12):
        there, here = torch.as_tensor(there).cpu(), torch.as_tensor(here)
        assert torch.allclose(there.double(), here.double(), tolerance, tolerance, equal_nan=True), what
        print("same:", what)

    for name in names:
        here = models.CASES[name]().problem
        batches = pytree.tree_map(lambda x: x.to("sim") if isinstance(x, torch.Tensor) else x, list(here.batches))
        there = gt.Problem(copy.deepcopy(here.model).to("sim"), models.cross_entropy, batches)
        assert str(there.device) == "sim:0"
        same(f"{name} loss", there.loss(), here.loss())
        same(f"{name} gradient", there.gradient(), here.gradient())
        vectors = torch.randn(here.size, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for way in ("double-backward", "double-backward-fresh", "linearized-double-backward", "finite-differences"):
            products = (gt.Hessian(p, strategy=way) @ v for p, v in ((there, vectors.to("sim")), (here, vectors)))
            same(f"{name} products, {way}", *products)
        same(f"{name} GGN", gt.GGN(there) @ vectors.to("sim"), gt.GGN(here) @ vectors)
        H, K = gt.Hessian(there, strategy="double-backward"), gt.Hessian(here, strategy="double-backward")
        same(f"{name} dense", H.dense(), K.dense())
        same(f"{name} eigsh", gt.eigsh(H, k=3, which="LM").values, gt.eigsh(K, k=3, which="LM").values, 1e-8)
        found, known = (gt.spectral_density(A, steps=12, probes=2) for A in (H, K))
        same(f"{name} density", found.nodes, known.nodes, 1e-8)
        found, known = (gt.spectrum(A, steps=12, probes=2, k=2) for A in (H, K))
        same(f"{name} spectrum", found.eigenpairs.values, known.eigenpairs.values, 1e-8)
        same(f"{name} trace", gt.trace(H, probes=4).value, gt.trace(K, probes=4).value)
        for method in ("exact", "probing", "hutchinson", "xdiag"):
            found, known = (gt.diagonal(p, method, samples=4) for p in (there, here))
            same(f"{name} diagonal, {method}", found.values, known.values)
            same(f"{name} standard errors, {method}", found.sem, known.sem)
        found, known = (gt.r_med(p, samples=4)["all"].value for p in (there, here))
        same(f"{name} r_med", found, known)

    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for device in ("sim", "cpu"):
            task = tasks.make("digits-mlp", width=4, layers=1, eval_examples=16, device=device)
            run_there = train(task, "adam", 1e-3, 4, 0, path=Path(folder) / device, progress=False)
            runs[device] = gt.measure(run_there, task.problem(task.model(0)), ["r_med", "spectrum"], progress=False)
        for a, b in zip(runs["sim"].measurements, runs["cpu"].measurements, strict=True):
            assert a.made["device"] == "sim:0" and a.quantities
            for label in a.quantities:
                same(f"step {a.step} {label}", a.quantities[label].value, b.quantities[label].value, 1e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = register()
    main(sys.argv[1:])
