"""With a cache of the hub made here: nothing is fetched from anywhere."""

import types

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import geomtraj as gt

STEPS = (0, 16, 128)


@pytest.fixture
def states(tmp_path, monkeypatch):
    """A repository own/tiny2-14m with three revisions in the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "cache" / "models--own--tiny2-14m"
    (home / "refs").mkdir(parents=True)
    torch.manual_seed(0)
    made = {}
    for number, step in enumerate(STEPS):
        commit = f"{number}" * 40
        (home / "refs" / f"step{step}").write_text(commit)
        folder = home / "snapshots" / commit
        folder.mkdir(parents=True)
        made[step] = nn.Linear(3, 2).state_dict()
        if step == 16:  # a repository's older revisions may hold another form
            torch.save(made[step], folder / "pytorch_model.bin")
        else:
            save_file(made[step], folder / "model.safetensors")
    return made


def test_revisions_are_read_as_checkpoints(states, tmp_path):
    paths = [f"hf://own/tiny2-14m@step{step}" for step in STEPS]
    trajectory = gt.Trajectory.from_checkpoints(paths, out=tmp_path / "results")
    assert trajectory.steps == list(STEPS)
    model = nn.Linear(3, 2)
    for step, state in states.items():
        trajectory.load_into(model, step)
        assert torch.equal(model.weight, state["weight"])
    problem = gt.Problem(model, nn.MSELoss(), [(torch.ones(4, 3), torch.ones(4, 2))])
    assert gt.measure(trajectory, problem, [], progress=False).steps == list(STEPS)


def test_revisions_are_looked_up_by_a_pattern(states, tmp_path, monkeypatch):
    refs = types.SimpleNamespace(
        branches=[types.SimpleNamespace(name=name) for name in ("main", "step0", "step128")],
        tags=[types.SimpleNamespace(name="step16")],
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", lambda self, repository: refs)
    trajectory = gt.Trajectory.from_checkpoints("hf://own/tiny2-14m@step*", out=tmp_path / "results")
    assert trajectory.steps == list(STEPS)
    with pytest.raises(gt.TrajectoryError, match="no revision of own/tiny2-14m matches x.: there are main"):
        gt.Trajectory.from_checkpoints("hf://own/tiny2-14m@x*", out=tmp_path / "results")


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("hf://own/tiny2-14m", gt.InputError, "names no revision: write hf://owner/name@revision"),
        ("hf://tiny@main", gt.InputError, "names no revision"),
        ("hf://own/tiny2-14m@step7", gt.TrajectoryError, "cannot fetch hf://own/tiny2-14m@step7"),
        ("hf://own/other@step7", gt.TrajectoryError, "cannot fetch hf://own/other@step7"),
        ("hf://own/tiny2-14m@s*", gt.TrajectoryError, "cannot list the revisions of own/tiny2-14m"),
    ],
)
def test_what_cannot_be_fetched_gets_a_sentence(states, path, kind, said, tmp_path):
    with pytest.raises(kind, match=said):
        gt.Trajectory.from_checkpoints([path], out=tmp_path / "results", steps=[7])


def test_where_results_go_has_to_be_said(states):
    with pytest.raises(gt.InputError, match="out=FOLDER"):
        gt.Trajectory.from_checkpoints(["hf://own/tiny2-14m@step0"], steps=[0])
