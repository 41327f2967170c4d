import ast
import importlib
import inspect
import pickle
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import geomtraj as gt

SIGNATURES = {
    "Problem": "model, loss, batches, params=None, mode='eval'",
    "Hessian": "problem, theta=None",
    "GGN": "problem, theta=None",
    "Preconditioned": "operator, scale",
    "eigsh": "H, k=10, which='LA', tol=0.0001, seed=0",
    "spectral_density": "H, steps=64, probes=4, seed=0",
    "spectrum": "H, steps=64, probes=4, k=10, which='BE', tol=0.001, seed=0",
    "shard": "batches, group",
    "trace": "H, probes=32, seed=0",
    "diagonal": "problem, method='auto', samples=64, seed=0, theta=None",
    "r_med": "problem, method='auto', seed=0, theta=None",
    "Recorder": "path, model, optimizer, schedule=None, meta=None",
    "Trajectory": "path",
    "next_update": "problem, iterate, optimizer=None, batches=None",
    "Trajectory.from_checkpoints": "paths",
    "losses.classification": "model, batch",
    "losses.causal_lm": "model, batch",
    "losses.masked_lm": "model, batch",
    "losses.seq2seq_lm": "model, batch",
    "losses.from_criterion": "criterion",
    "measure": "trajectory, problem, statistics=('r_med', 'spectrum'), executor=None, resume=True",
    "contrast": "groups, statistic='r_med', at='loss'",
    "register": "thing, name=None",
    "report": "groups, path='report.html'",
    "plot.losses": "groups, ax=None",
    "plot.r_med": "groups, label, against='step', ax=None",
    "plot.contrast": "table, ax=None",
    "plot.spectrum": "results, step=None, ax=None",
    "every": "n",
    "at": "steps",
    "log_spaced": "n, total",
}


def positional(function):
    parameters = inspect.signature(function).parameters.values()
    shown = []
    for p in parameters:
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            shown.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}")
    return ", ".join(shown)


def test_the_promised_names_take_the_promised_arguments():
    for name, promised in SIGNATURES.items():
        assert positional(attrgetter(name)(gt)).startswith(promised), name


def test_every_public_name_has_a_docstring():
    for name in gt.__all__:
        thing = getattr(gt, name)
        if callable(thing):
            assert inspect.getdoc(thing), name


HEAVY = ("torch", "numpy", "scipy", "h5py", "matplotlib", "pandas", "tqdm", "jinja2", "rich", "click", "cloudpickle")
STEPS = {
    "import geomtraj as gt": HEAVY,
    "gt.Problem, gt.Recorder, gt.Trajectory, gt.at": ("scipy", "h5py", "matplotlib", "pandas", "torch._dynamo"),
    "gt.Hessian, gt.GGN, gt.eigsh, gt.spectral_density, gt.trace, gt.diagonal": (
        "scipy.stats", "scipy.optimize", "h5py", "matplotlib", "pandas", "jinja2", "torch._dynamo"
    ),
    "gt.measure, gt.contrast, gt.report, gt.plot, gt.STATISTICS": ("h5py", "matplotlib", "pandas", "torch._dynamo"),
}  # fmt: skip


def test_what_takes_long_to_import_is_imported_where_it_is_used():
    lines = ["import sys"]
    for step, absent in STEPS.items():
        lines += [step, f"print([name for name in {absent!r} if name in sys.modules])"]
    code = "\n".join(lines)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "[]\n" * len(STEPS)


def test_names_are_there_before_they_are_imported():
    code = (
        "import geomtraj as gt; assert set(gt.__all__) <= set(dir(gt)); "
        "from geomtraj import *; assert all(globals()[name] is getattr(gt, name) for name in gt.__all__); "
        "assert gt.statistics.REGISTRY is STATISTICS; assert not hasattr(gt, 'nothing') and not hasattr(gt, '_nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_the_same_to_python_and_to_type_checkers():
    tree = ast.parse(Path(gt.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name: node.module for node in block.body for alias in node.names}
    assert {*seen, "__version__"} == set(gt.__all__)
    for name, module in seen.items():
        if name not in gt._MODULES:
            assert getattr(gt, name) is getattr(importlib.import_module(module), gt._RENAMED.get(name, name)), name


def test_classes_and_functions_are_pickled_by_where_they_are_defined():
    for name in gt.__all__:
        thing = getattr(gt, name)
        if callable(thing):
            assert pickle.loads(pickle.dumps(thing)) is thing, name
