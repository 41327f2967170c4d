"""Results made up from formulas, so that contrasts and reports need neither training nor measuring."""

import math
import zlib

import numpy as np

from geomtraj.measuring.results import Measurement, Results
from geomtraj.statistics.base import Quantity
from geomtraj.status import Code, Remark, Status

STEPS = [0, 5, 10, 20, 40, 80, 120, 180, 260, 360, 480, 600]


def results_of(
    steps, losses, values, statistic="r_med", seed=None, times=None, status="complete", path="run", **meta
) -> Results:
    """A run whose loss and whose one statistic are given, exact: `values` is label -> one number per step."""
    times = [0.1 * s for s in steps] if times is None else times
    if seed is not None:
        meta["seed"] = seed
    rows = []
    for i, (step, time) in enumerate(zip(steps, times, strict=True)):
        if losses is not None:
            rows.append(Measurement(step, time, "loss", {}, {"loss": Quantity.exact(float(losses[i]))}))
        quantities = {label: Quantity.exact(float(v[i])) for label, v in values.items()}
        rows.append(Measurement(step, time, statistic, {"seed": 0}, quantities))
    return Results(path, {"meta": meta, "status": status}, rows)


def block_shapes(layers=3, width=64):
    """Names and shapes of a small GPT's parameters."""
    shapes = {"embed.weight": (128, width), "position.weight": (32, width)}
    for i in range(layers):
        for name, shape in {
            "norm1.weight": (width,),
            "attention.qkv.weight": (3 * width, width),
            "attention.out.weight": (width, width),
            "mlp.up.weight": (4 * width, width),
            "mlp.down.weight": (width, 4 * width),
        }.items():
            shapes[f"blocks.{i}.{name}"] = shape
    shapes["head.weight"] = (128, width)
    return shapes


def run(
    optimizer="adam",
    seed=0,
    steps=STEPS,
    layers=3,
    terrain=1.0,
    noise=0.2,
    width=0.25,
    bare=False,
    diverged_at=None,
    statistics=("loss", "r_med", "spectrum", "trace"),
) -> Results:
    """A run as training and measuring a small language model would leave it.

    Args:
        optimizer: Name in `meta`, which also seeds the noise.
        terrain: How fast R_med grows along the path: R_med ~ (start loss / loss)^terrain.
        noise: Scatter of log R_med between seeds.
        width: Half-width of the intervals on the log scale.
        bare: Without meta, as a user's own run may be.
        diverged_at: Step from which on nothing is finite.
    """
    rng = np.random.default_rng([seed, zlib.crc32(optimizer.encode())])
    shapes = block_shapes(layers)
    size = sum(math.prod(s) for s in shapes.values())
    speed = {"adam": 1.0, "sgdm": 0.75, "muon": 1.25}.get(optimizer, 0.6)
    start = 4.85 + 0.02 * seed
    tilt = {label: 1 + 0.4 * np.sin(3.0 * i) for i, label in enumerate(shapes)}
    start_rng = np.random.default_rng(seed)  # both optimizers set out from the same point
    base = {
        label: np.exp(1.5 + 1.5 * abs(np.cos(2.0 * i)) + noise * start_rng.normal()) for i, label in enumerate(shapes)
    }
    own = {label: 0.5 * noise * rng.normal() for label in shapes}
    rows = []
    for step in steps:
        dead = diverged_at is not None and step >= diverged_at
        loss = start * (1 + step / 12) ** (-0.17 * speed) + 0.01 * rng.normal() * (step > 0)
        time = 0.021 * step
        reason = "the parameters are not finite here: training diverged"

        def add(name, quantities, details=None, status="ok", matvecs=0, step=step, time=time, dead=dead, reason=reason):
            if name not in statistics:
                return
            made = {"problem": "abc", "dtype": "float32", "device": "cpu", "geomtraj": "0.1.0", "torch": "2.13.0"}
            if dead:
                quantities, details, status, matvecs = {}, {}, reason, 0
            rows.append(
                Measurement(step, time, name, {}, quantities, details or {}, status, matvecs, matvecs * 0.011, made)
            )

        add("loss", {"loss": Quantity.exact(loss), "gradient_norm": Quantity.exact(0.3 + 1 / (1 + step / 50))})
        quantities, details = {}, {}
        for label, shape in shapes.items():
            grown = math.log(start / loss)
            scatter = (own[label] * grown + 0.05 * rng.normal()) * (step > 0)
            value = base[label] * math.exp(2.5 * terrain * tilt[label] * grown + scatter)
            loose = label == "blocks.0.attention.qkv.weight"
            half = width * (2.0 if loose else 1.0)
            high = math.inf if loose and step in (5, 40) else value * math.exp(half)
            quantities[label] = Quantity(value, max(1.0, value * math.exp(-half)), high)
            details[label] = {"max": value, "median": 1.0, "zeros": 0, "size": math.prod(shape), "method": "xdiag"}
        overall = 3 * float(np.mean([q.value for q in quantities.values()]))
        quantities["all"] = Quantity(overall, overall * 0.8, overall * 1.3)
        add("r_med", quantities, details, matvecs=64)
        top = np.array([30, 18, 11, 7, 5]) * (0.3 + (start / loss) ** (2 * terrain)) * np.exp(0.1 * rng.normal())
        bottom = -np.array([6, 3, 1.5, 1, 0.6]) * (0.15 + loss / start) * np.exp(0.1 * rng.normal())
        bulk = 0.02 * np.sort(rng.standard_t(1.3, size=24))
        bulk = bulk[np.abs(bulk) < 5]
        nodes = np.concatenate([bottom, bulk, top])
        weights = np.concatenate([np.full(5, 1 / size), np.exp(-np.abs(bulk) * 8), np.full(5, 1 / size)])
        weights[5:-5] *= (1 - 10 / size) / weights[5:-5].sum()
        spectrum = {
            "nodes": [nodes.tolist(), (nodes * 1.01).tolist()],
            "weights": [(weights / 2).tolist(), (weights / 2).tolist()],
            "top": top.tolist(),
            "top_residuals": [1e-4] * 5,
            "bottom": bottom.tolist(),
            "bottom_residuals": [1e-4] * 5,
            "size": size,
        }
        ends = {
            "lambda_max": Quantity(top[0], top[0] - 1e-4, top[0] + 1e-4),
            "lambda_min": Quantity(bottom[0], bottom[0] - 1e-4, bottom[0] + 1e-4),
        }
        loose = Remark(Code.NOT_CONVERGED, "lambda_min has not converged: residual 0.5 at -7", "lambda_min")
        add("spectrum", ends, spectrum, Status() if step else Status([loose]), 256)
        trace = float(top.sum() * 6)
        add("trace", {"trace": Quantity.with_sem(trace, 0.03 * trace)}, matvecs=32)
    manifest = {
        "status": "complete" if diverged_at is None else "diverged",
        "diverged_at": diverged_at,
        "parameters": {name: list(shape) for name, shape in shapes.items()},
        "meta": {},
        "sessions": [
            {
                "from_step": 0,
                "started": "2026-01-01T00:00:00+00:00",
                "command": f"geomtraj train --optimizers {optimizer}",
                "versions": {"python": "3.12.1", "torch": "2.13.0", "numpy": "2.4.6", "geomtraj": "0.1.0"},
                "platform": "Linux",
                "device": "cpu",
                "threads": 2,
                "git_commit": "0123456789abcdef",
            }
        ],
    }
    log = []
    if not bare:
        lr = {"adam": 3e-3, "sgdm": 0.3}.get(optimizer, 0.01)
        manifest["meta"] = {"task": "pydoc-lm", "optimizer": optimizer, "lr": lr, "seed": seed, "steps": max(steps)}
        end = max(steps) if diverged_at is None else diverged_at
        for step in range(0, end, 5):
            noisy = start * (1 + step / 12) ** (-0.17 * speed) * np.exp(0.03 * rng.normal())
            log.append({"step": step, "wall_time": 0.021 * step, "loss": float(noisy)})
    return Results(f"runs/synthetic/{optimizer}-{seed}", manifest, rows, log)


def groups(optimizers=("adam", "sgdm"), seeds=3, **options):
    """Groups of runs; SGD with momentum's R_med grows faster, the others' in between."""
    terrain = {"adam": 0.5, "sgdm": 1.0}
    return {
        name: [run(name, seed, **{"terrain": terrain.get(name, 0.75), **options}) for seed in range(seeds)]
        for name in optimizers
    }


def with_blocks(count, seeds=2, optimizers=("adam", "sgdm"), steps=(0, 10, 20, 40)):
    """Groups of runs of a model with so many blocks: an embedding, layers of four matrices each, and a head."""
    parts = ("attention.qkv.weight", "attention.out.weight", "mlp.up.weight", "mlp.down.weight")
    layers = [f"blocks.{i}.{part}" for i in range(-(-count // 4)) for part in parts]
    names = ["head.weight", "embedding.weight", *layers][:count]
    made = {}
    for k, optimizer in enumerate(optimizers):
        made[optimizer] = []
        for seed in range(seeds):
            rng = np.random.default_rng([seed, k])
            losses = 4.0 / (1 + np.array(steps) / (10.0 + k))
            values = {
                name: np.exp(1 + 0.4 * k * np.array(steps) / 40 + 0.2 * rng.normal(size=len(steps))) for name in names
            }
            r = results_of(steps, losses, values, seed=seed, optimizer=optimizer, path=f"runs/{optimizer}-{seed}")
            r.manifest["parameters"] = {name: [8, 8] for name in names}
            made[optimizer].append(r)
    return made
