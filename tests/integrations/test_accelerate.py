import pytest
import torch
from accelerate import Accelerator
from torch import nn

import geomtraj as gt


def loader():
    rng = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(24, 3, generator=rng), torch.randint(2, (24,), generator=rng))
    return torch.utils.data.DataLoader(data, batch_size=4)


def train(folder=None, saved=None, resumed=None, resume=False, **options):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(
        [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}], 0.01
    )
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader())
    if resumed is not None:
        accelerator.load_state(resumed)
    recorder = None
    if folder is not None:
        recorder = gt.Recorder(folder, model, optimizer, gt.every(2), resume=resume, **options).start()
    for epoch in range(3):
        if resumed is not None and epoch < 2:
            continue
        for x, y in batches:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        if saved is not None and epoch == 1:
            accelerator.save_state(saved)
    if recorder is not None:
        recorder.stop()
    return [p.detach().clone() for p in model.parameters()]


def test_prepared_objects_are_recorded_as_they_are(tmp_path):
    bare = train()
    assert all(map(torch.equal, train(tmp_path / "run", tmp_path / "state"), bare))
    trajectory = gt.Trajectory(tmp_path / "run")
    assert trajectory.steps == [0, 2, 4, 6, 8, 9]
    assert trajectory.manifest["optimizer"]["class"] == "Adam"
    assert [group["lr"] for group in trajectory.manifest["optimizer"]["groups"]] == [0.1, 0.01]
    assert all(map(torch.equal, train(tmp_path / "run", resumed=tmp_path / "state", resume=True), bare))
    again = gt.Trajectory(tmp_path / "run")
    assert again.steps == [0, 2, 4, 6, 8, 9]
    assert [s["from_step"] for s in again.manifest["sessions"]] == [0, 6]
    folder = gt.Trajectory.from_checkpoints(tmp_path / "state", steps=[6])
    assert torch.equal(folder[0].theta.sort().values, again.at_step(6).theta.sort().values)
    assert folder[0].optimizer_state["param_groups"][0]["lr"] == 0.1


def test_a_wrong_step_is_refused(tmp_path):
    model = nn.Linear(2, 1)
    for step in (-1, 1.5, True, "3"):
        with pytest.raises(gt.InputError, match="count of optimizer steps"):
            gt.Recorder(tmp_path / "run", model, torch.optim.SGD(model.parameters())).start(step)
    assert not (tmp_path / "run").exists()
