"""Writing and reading one iterate against torch.save, safetensors and torch.distributed.checkpoint, and what it costs.

Parameters and Adam's state, on the same disk, each with fsync: seconds, processor seconds and bytes, in turns, and the
growth of the process's memory, each in a process of its own that is forked with the tensors in it. Then training with
and without a Recorder, in turns.

    python benchmarks/recording.py --out benchmarks/results/recording.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed.checkpoint as dcp
from common import provenance
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import geomtraj as gt
from geomtraj import tasks
from geomtraj.training import optimizers
from geomtraj.training.loop import mean_loss
from geomtraj.trajectory import store
from geomtraj.trajectory.background import copied

SIZES = {"1M": [1_000_000 // 10] * 10, "50M": [5_000_000] * 10, "3000 tensors": [333] * 3000}
"""Name -> entries of each parameter tensor."""


def content(sizes: list[int]) -> dict[str, Any]:
    """Parameters and Adam's state, as the Recorder hands them on."""
    names = [f"layers.{i}.weight" for i in range(len(sizes))]
    state = {
        i: {"step": torch.tensor(9.0), "exp_avg": torch.randn(n), "exp_avg_sq": torch.rand(n)}
        for i, n in enumerate(sizes)
    }
    return {
        "parameters": {name: torch.randn(n) for name, n in zip(names, sizes, strict=True)},
        "buffers": {},
        "trainable": names,
        "optimizer": {"state": state, "param_groups": [{"lr": 0.1, "params": list(range(len(sizes)))}]},
        "step": 0,
        "wall_time": 1.0,
    }


def flat(one: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, as safetensors takes them."""
    state = one["optimizer"]["state"]
    return {**one["parameters"], **{f"{key}.{i}": t for i, entry in state.items() for key, t in entry.items()}}


def synced(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def by_torch(folder: Path, one: dict[str, Any]) -> None:
    """torch.save."""
    torch.save(one, folder / "a.pt")
    synced(folder / "a.pt")


def by_safetensors(folder: Path, one: dict[str, Any]) -> None:
    """safetensors, which stores tensors alone."""
    save_file(flat(one), folder / "a.safetensors")
    synced(folder / "a.safetensors")


def by_dcp(folder: Path, one: dict[str, Any]) -> None:
    """torch.distributed.checkpoint of one process, which syncs its files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {"parameters": one["parameters"], "optimizer": one["optimizer"]}, checkpoint_id=folder / "a", no_dist=True
        )


def by_geomtraj(folder: Path, one: dict[str, Any], compress: bool = False) -> None:
    """An iterate's file."""
    store.write_iterate(folder, 0, one, compress=compress)


def in_background(folder: Path, one: dict[str, Any]) -> None:
    """An iterate's file from a copy, as the background writer makes it."""
    store.write_iterate(folder, 0, copied(one))


_DCP = "torch.distributed.checkpoint"
WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "torch.save": by_torch,
    "safetensors": by_safetensors,
    _DCP: by_dcp,
    "geomtraj": by_geomtraj,
    "geomtraj, background": in_background,
    "geomtraj, compressed": partial(by_geomtraj, compress=True),
}

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "torch.load": ("torch.save", lambda folder: torch.load(folder / "a.pt", weights_only=True)),
    "safetensors": ("safetensors", lambda folder: load_file(folder / "a.safetensors")),
    "geomtraj": ("geomtraj", lambda folder: store.read_iterate(folder, 0)),
    "geomtraj, parameters": ("geomtraj", lambda folder: store.read_iterate(folder, 0, ("parameters",))),
}


def timed(act: Callable[[], Any]) -> dict[str, float]:
    """Seconds and processor seconds that something takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    held = act()
    row = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    del held
    return row


def peak(warm: Callable[[], Any], act: Callable[[], Any]) -> float:
    """Bytes by which a forked process grows at most while it does something that it has done in small before.

    Once in small, since the pages of libraries come into a forked process when they are first used there.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        warm()
        before = psutil.Process().memory_info().rss
        held = act()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        os.write(writer, str(grown).encode())
        del held
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        grown = float(pipe.read())
    os.waitpid(pid, 0)
    return grown


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each column."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def memory(sizes: list[int], place: Path) -> dict[str, dict[str, float]]:
    """Growth of memory in writing and reading, over the size of the data; to run before anything was freed."""
    one = content(sizes)
    data = sum(t.nbytes for t in flat(one).values())
    folders = {name: place / str(i) for i, name in enumerate(WRITERS)}
    found: dict[str, dict[str, float]] = {"write": {}, "read": {}}
    for folder in (place / "warm", *folders.values()):
        folder.mkdir(parents=True)
    small = content([10])
    for write in WRITERS.values():
        write(place / "warm", small)
    for name, write in WRITERS.items():
        if name != _DCP:  # which starts threads, as a forked process must not
            found["write"][name] = (
                peak(partial(write, place / "warm", small), partial(write, folders[name], one)) / data
            )
    for name, (source, load) in READERS.items():
        found["read"][name] = peak(partial(load, place / "warm"), partial(load, folders[source])) / data
    shutil.rmtree(place)
    return found


def files(sizes: list[int], rounds: int, place: Path) -> dict[str, Any]:
    """Seconds of writing and reading, in turns, and bytes."""
    one = content(sizes)
    data = sum(t.nbytes for t in flat(one).values())
    folders = {name: place / str(i) for i, name in enumerate(WRITERS)}
    written: dict[str, list[dict[str, float]]] = {name: [] for name in WRITERS}
    read: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
    for number in range(rounds):
        for name, write in WRITERS.items():
            if number and name.endswith("compressed"):
                continue
            shutil.rmtree(folders[name], ignore_errors=True)
            folders[name].mkdir(parents=True)
            written[name].append(timed(partial(write, folders[name], one)))
        for name, (source, load) in READERS.items():
            read[name].append(timed(partial(load, folders[source])))
    found: dict[str, Any] = {"data_mib": data / 2**20, "write": {}, "read": {n: medians(r) for n, r in read.items()}}
    for name, rows in written.items():
        size = sum(f.stat().st_size for f in folders[name].rglob("*") if f.is_file())
        paired = [row["seconds"] / base["seconds"] for row, base in zip(rows, written["torch.save"], strict=False)]
        found["write"][name] = medians(rows) | {
            "bytes_over_data": size / data,
            "over_torch_save": statistics.median(paired),
        }
    shutil.rmtree(place)
    return found


def training(blocks: int, place: Path) -> dict[str, Any]:
    """Overhead of recording in training a GPT, in blocks of 100 steps with each schedule and without, in turns."""
    task = tasks.make("pydoc-lm", layers=6, width=128, heads=4, context=32, eval_sequences=32)
    model: nn.Module = task.model(0)
    optimizer = optimizers.make("adam", model, 3e-3)

    def steps() -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(100):
            loss = mean_loss(task, model, [task.batch(step, 0)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    ways = {f"every({n}){', background' if b else ''}": (n, b) for n in (10, 100) for b in (False, True)}
    ratios: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    plain_seconds = []
    steps()
    for block in range(blocks):
        for name, (n, background) in ways.items():
            first = block % 2 == 0
            rows = []
            for recorded in (first, not first):
                if recorded:
                    with gt.Recorder(place / "run", model, optimizer, gt.every(n), background=background):
                        rows.append(steps())
                    shutil.rmtree(place / "run")
                else:
                    rows.append(steps())
            with_it, without = rows if first else rows[::-1]
            plain_seconds.append(without["seconds"])
            ratios[name].append({f"{key}_overhead": with_it[key] / without[key] - 1 for key in with_it})
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_seconds": statistics.median(plain_seconds) / 100,
        **{name: medians(rows) for name, rows in ratios.items()},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recording.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = provenance(f"python benchmarks/recording.py --rounds {options.rounds} --blocks {options.blocks}")
    with tempfile.TemporaryDirectory() as folder:
        names = options.sizes.split(",")
        result["peak_over_data"] = {name: memory(SIZES[name], Path(folder) / "memory") for name in names}
        print(json.dumps(result["peak_over_data"], indent=1), flush=True)
        for name in names if options.rounds else []:
            result[name] = files(SIZES[name], options.rounds, Path(folder) / "files")
            print(name, json.dumps(result[name], indent=1), flush=True)
        if options.blocks:
            result["training"] = training(options.blocks, Path(folder))
            print(json.dumps(result["training"], indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
