import inspect
import subprocess
import sys
from operator import attrgetter

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


def test_figures_are_imported_when_they_are_drawn():
    code = "import sys, geomtraj; print([name for name in ('matplotlib', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
