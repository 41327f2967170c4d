import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from importlib import metadata

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import geomtraj as gt
from geomtraj import plugins, statistics, tasks
from geomtraj.cli import main
from geomtraj.statistics import Outcome, Quantity
from geomtraj.training import optimizers

PLUGIN = """
from dataclasses import dataclass
import torch
import geomtraj as gt
from geomtraj.statistics import Outcome, Quantity

SCALE = 1.0

@dataclass(frozen=True)
class GradientNorm(gt.Statistic):
    name = "gradient_norm"
    title = "norm of the gradient"
    power: int = 1

    def measure(self, point):
        norm = SCALE * float(point.problem.gradient(point.theta).norm()) ** self.power
        return Outcome({"norm": Quantity.exact(norm)})

class Halved(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.5)
        return super().step(closure)

torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
batch = (torch.ones(4, 3), torch.ones(4, 2))

def problem():
    return gt.Problem(model, torch.nn.MSELoss(), [batch])

def of_run(meta):
    return gt.Problem(torch.nn.Linear(meta["width"], 2), torch.nn.MSELoss(), [batch])

ready = problem()
number = 3
"""


@pytest.fixture(autouse=True)
def modules_of_files():
    """Are forgotten after each test."""
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", "") and "mine" in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def command(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def recorded(folder, meta=None):
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gt.Recorder(folder, model, optimizer, gt.every(2), meta=meta) as rec:
        while rec.step < 4:
            optimizer.zero_grad()
            (model(torch.ones(4, 3)) - 1).square().mean().backward()
            optimizer.step()
    return gt.Trajectory(folder)


def test_a_statistic_of_ones_own_is_found_by_its_name(tmp_path):
    @gt.register
    @dataclass(frozen=True)
    class Weights(gt.Statistic):
        name = "weights"
        title = "norm of the parameters"
        power: int = 1

        def measure(self, point):
            return Outcome({"norm": Quantity.exact(float(point.theta.norm()) ** self.power)})

    assert gt.STATISTICS["weights"] is Weights
    problem = gt.Problem(nn.Linear(3, 2), nn.MSELoss(), [(torch.ones(4, 3), torch.ones(4, 2))])
    trajectory = recorded(tmp_path / "run")
    results = gt.measure(trajectory, problem, ["weights"], settings={"weights": {"power": 2}}, progress=False)
    for m, iterate in zip(results.of("weights"), trajectory, strict=True):
        assert m.quantities["norm"].value == pytest.approx(float(iterate.theta.square().sum()))


def test_an_optimizer_of_ones_own_trains_by_its_name(tmp_path):
    from geomtraj.training.loop import train

    @gt.register
    class Slow(torch.optim.SGD):
        def __init__(self, params, lr=0.05, momentum=0.0):
            super().__init__(params, lr, momentum)

    options = {"d": 6}
    task = tasks.make("two-layer-linear", **options)
    trajectory = train(task, "slow", None, 3, path=tmp_path / "a", progress=False, momentum=0.5)
    assert trajectory.manifest["optimizer"]["class"] == "Slow"
    assert trajectory.manifest["optimizer"]["groups"][0]["lr"] == 0.05
    assert trajectory.manifest["optimizer"]["groups"][0]["momentum"] == 0.5
    problem = task.problem(task.model(0))
    assert gt.next_update(problem, trajectory[0]).norm() > 0, "gt.register tells it how to build one"
    with pytest.raises(gt.InputError, match="unknown hyperparameter of slow"):
        train(task, "slow", None, 3, path=tmp_path / "b", progress=False, betas=1)


def test_a_task_of_ones_own_is_found_by_its_name():
    class Mine(tasks.REGISTRY["two-layer-linear"]):
        name = "mine"

    assert gt.register(Mine) is Mine
    assert tasks.make("mine", d=6).options["d"] == 6


class Unnamed(gt.Statistic):
    title = "x"

    def measure(self, point):
        return Outcome({})


class Unfinished(gt.Statistic):
    name, title = "unfinished", "x"


@dataclass(frozen=True)
class Taken(gt.Statistic):
    name, title = "r_med", "x"

    def measure(self, point):
        return Outcome({})


class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


class NoRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})


class Adam(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (Unnamed, "has no name"),
        (Unfinished, "define measure"),
        (Taken, "there is a statistic 'r_med' already"),
        (NeedsClosure, "needs a closure"),
        (NoRate, "takes no lr"),
        (Adam, "there is an optimizer 'adam' already"),
        (nn.Linear, "takes a Statistic, a Task or an optimizer's class, not Linear"),
        (3, "not int"),
    ],
)
def test_what_cannot_be_registered_is_told(thing, said):
    with pytest.raises(gt.InputError, match=said):
        gt.register(thing)


def test_registering_the_same_class_again_is_no_error(mine):
    first = plugins.imported(str(mine)).GradientNorm
    gt.register(first)
    del sys.modules["mine"]
    again = plugins.imported(str(mine)).GradientNorm
    assert again is not first
    gt.register(again)
    assert gt.STATISTICS["gradient_norm"] is again


@pytest.mark.parametrize("how", ["plugin", "name"])
@pytest.mark.parametrize("problem", ["problem", "ready", "of_run"])
def test_the_command_line_measures_own_runs_with_own_code(how, problem, mine, tmp_path):
    recorded(tmp_path / "run", {"width": 3})
    chosen = (
        ("--plugin", mine, "--statistics", "gradient_norm") if how == "plugin" else
        ("--statistics", f"{mine}:GradientNorm")
    )  # fmt: skip
    done = command(
        "measure", tmp_path / "run", *chosen, "--problem", f"{mine}:{problem}", "--set", "gradient_norm.power=2"
    )
    assert done.exit_code == 0, done.output
    results = gt.Results.load(tmp_path / "run")
    assert len(results.of("gradient_norm")) == 3
    assert results.of("gradient_norm")[0].settings == {"power": 2}


def test_worker_processes_get_own_code_along(mine, tmp_path):
    recorded(tmp_path / "run")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = ["measure", "run", "--plugin", "mine.py", "--statistics", "gradient_norm", "--problem", "mine:problem"]
    done = subprocess.run(
        [sys.executable, "-m", "geomtraj", *arguments, "--workers", "2"], cwd=tmp_path, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(m.status == "ok" for m in gt.Results.load(tmp_path / "run").measurements)


def test_own_optimizers_train_and_are_listed(mine, tmp_path):
    arguments = ("--task", "two-layer-linear", "--option", "d=6", "--steps", "3", "--plugin", mine)
    done = command("train", *arguments, "--optimizer", "halved", "--lr", "0.1", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    listed = command("list", "--plugin", mine).output
    assert "optimizer  halved" in listed
    assert "statistic  gradient_norm        norm of the gradient: power=1" in listed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--plugin", "gone.py"), "there is no file"),
        (("--plugin", "no_such_module_here"), "there is no module no_such_module_here"),
        (("--plugin", "broken.py"), "broken.py cannot be imported (ZeroDivisionError"),
        (("--plugin", "needs.py"), "cannot be imported (ModuleNotFoundError"),
        (("--statistics", "mine.py:Nothing"), "mine.py has no Nothing: there are"),
        (("--statistics", "mine.py:number"), "mine.py:number is a int"),
        (("--statistics", ":x"), "names nothing"),
        (("--statistics", "loss"), "--problem FILE:NAME"),
        (("--statistics", "loss", "--problem", "mine.py"), "names nothing"),
        (("--statistics", "loss", "--problem", "mine.py:number"), "mine.py:number is a int"),
        (("--statistics", "loss", "--problem", "mine.py:problem", "--device", "cpu"), "makes its own problem"),
        (("--statistics", "loss", "--problem", "mine.py:GradientNorm"), "is a GradientNorm"),
        (("--statistics", "gradient_norm"), "unknown statistic 'gradient_norm'"),
    ],
)
def test_wrong_names_get_a_sentence(arguments, said, mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needs.py").write_text("import no_such_package_at_all")
    recorded(tmp_path / "run")
    done = command("measure", "run", *arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_installed_packages_are_found_by_entry_points(mine, tmp_path, monkeypatch):
    info = tmp_path / "mine_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent("""
        [geomtraj.statistics]
        gradient_norm = mine:GradientNorm
        broken = mine:NotThere
        [geomtraj.optimizers]
        half = mine:Halved
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_LOADED", {})
    assert [d.name for d in metadata.distributions(name="mine-package")] == ["mine-package"]
    assert optimizers.entry("half").function.__name__ == "Halved"
    with pytest.warns(gt.GeomtrajWarning, match="mine-package announces as geomtraj.statistics, cannot be imported"):
        assert statistics.find("gradient_norm").__name__ == "GradientNorm"
    assert statistics.find("gradient_norm").__name__ == "GradientNorm", "it warns once"


def test_optimizers_of_the_package_pytorch_optimizer_come_by_name(tmp_path, monkeypatch):
    """With a stand-in for the package, which takes long to import."""
    info = tmp_path / "pytorch_optimizer-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pytorch_optimizer\nVersion: 9.9\n")
    (tmp_path / "pytorch_optimizer").mkdir()
    (tmp_path / "pytorch_optimizer" / "__init__.py").write_text(
        textwrap.dedent("""
        import torch
        class Lion(torch.optim.SGD):
            pass
        def get_supported_optimizers():
            return ["lion"]
        def load_optimizer(name):
            return {"lion": Lion}[name]
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "pytorch_optimizer"]:
        monkeypatch.delitem(sys.modules, name)
    out = tmp_path / "run"
    done = command(
        "train", "--task", "two-layer-linear", "--option", "d=6", "--steps", 3, "--optimizer", "lion", "--out", out
    )
    assert done.exit_code == 0, done.output
    trajectory = gt.Trajectory(out)
    assert trajectory.manifest["optimizer"]["class"] == "Lion"
    assert trajectory.manifest["sessions"][0]["versions"]["pytorch_optimizer"] == "9.9"
    task = tasks.make("two-layer-linear", d=6)
    assert gt.next_update(task.problem(task.model(0)), trajectory[0]).norm() > 0
    sys.modules.pop("pytorch_optimizer", None)
