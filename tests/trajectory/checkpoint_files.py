"""Checkpoints in every form, as other tools write them, of a small model in training."""

import copy
import json

import torch
from torch import nn

STEPS = (0, 10, 20)


class Net(nn.Module):
    """Two layers, one of them tied to a third, running statistics, and a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.head = nn.Linear(4, 2)
        self.again = nn.Linear(4, 2)
        self.again.weight = self.head.weight
        self.register_buffer("scale", torch.ones(2), persistent=False)

    def forward(self, x):
        x = self.inner(x)
        return (self.head(x) + self.again(x)) * self.scale


def trained(optimizer=torch.optim.Adam):
    """[(step, state_dict, optimizer's state_dict)] at STEPS."""
    torch.manual_seed(0)
    model = Net()
    moving = optimizer(model.parameters(), lr=0.05)
    x, y = batch()
    found = []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            found.append((step, copy.deepcopy(model.state_dict()), copy.deepcopy(moving.state_dict())))
        moving.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        moving.step()
    return found


def batch():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=rng), torch.randint(2, (6,), generator=rng)


def plain(folder, step, model, optimizer):
    torch.save(model, folder / f"model_{step}.pt")


def in_a_dict(folder, step, model, optimizer):
    content = {"model_state_dict": model, "optimizer_state_dict": optimizer, "step": torch.tensor(step), "loss": 0.5}
    torch.save(content, folder / f"{'abc'[STEPS.index(step)]}.pth")


def nanogpt(folder, step, model, optimizer):
    content = {
        "model": {f"_orig_mod.{name}": t for name, t in model.items()}, "optimizer": optimizer,
        "model_args": {"n_layer": 1}, "iter_num": step, "best_val_loss": torch.tensor(1e9), "config": {"lr": 0.1},
    }  # fmt: skip
    (folder / f"run{step}").mkdir()
    torch.save(content, folder / f"run{step}" / "ckpt.pt")


def parallel(folder, step, model, optimizer):
    content = {"module": {f"module.{name}": t for name, t in model.items()}, "iteration": step}
    torch.save(content, folder / f"at-{step}.bin")


def lightning(folder, step, model, optimizer):
    content = {
        "pytorch-lightning_version": "2.6.0", "epoch": 1, "global_step": step, "optimizer_states": [optimizer],
        "state_dict": {f"net.{name}": t for name, t in model.items()}, "loops": {}, "callbacks": {},
    }  # fmt: skip
    torch.save(content, folder / f"epoch=1-step={step}.ckpt")
    torch.save(content, folder / "last.ckpt")


def lightning_with_more(folder, step, model, optimizer):
    content = {
        "pytorch-lightning_version": "2.6.0", "global_step": step,
        "state_dict": {f"model.net.{name}": t for name, t in model.items()} | {"metric.total": torch.ones(3)},
    }  # fmt: skip
    torch.save(content, folder / f"epoch=1-step={step}.ckpt")


def legacy(folder, step, model, optimizer):
    torch.save({"net": model, "step": step}, folder / f"x{step}.pt", _use_new_zipfile_serialization=False)


def untied(model):
    return {name: t.contiguous() for name, t in model.items() if name != "again.weight"}


def safetensors(folder, step, model, optimizer):
    from safetensors.torch import save_file

    save_file(untied(model), folder / f"step{step}.safetensors", metadata={"step": str(step)})


def hugging_face(folder, step, model, optimizer):
    from safetensors.torch import save_file

    own = folder / f"checkpoint-{step}"
    own.mkdir()
    save_file(untied(model), own / "model.safetensors", metadata={"format": "pt"})
    torch.save(optimizer, own / "optimizer.pt")
    torch.save({"a": 1}, own / "training_args.bin")
    torch.save({"a": 1}, own / "rng_state.pth")
    history = [{"step": s, "loss": 1.0 / (s + 1), "learning_rate": 0.05, "epoch": 0.1} for s in range(0, step + 1, 5)]
    (own / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))


def in_shards(folder, step, model, optimizer, save, suffix):
    own = folder / f"step-{step}"
    own.mkdir()
    names = list(untied(model))
    places = {}
    for number, part in enumerate((names[:3], names[3:]), 1):
        shard = f"model-{number:05d}-of-00002{suffix}"
        save({name: model[name].contiguous() for name in part}, own / shard)
        places |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": places}
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    (own / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def safe_shards(folder, step, model, optimizer):
    from safetensors.torch import save_file

    in_shards(folder, step, model, optimizer, save_file, ".safetensors")


def bin_shards(folder, step, model, optimizer):
    in_shards(folder, step, model, optimizer, torch.save, ".bin")


FORMS = (
    plain, in_a_dict, nanogpt, parallel, lightning, lightning_with_more, legacy, safetensors, hugging_face, safe_shards,
    bin_shards,
)  # fmt: skip
WITH_OPTIMIZER = (in_a_dict, nanogpt, lightning, hugging_face)


def written(folder, form):
    """The trained model's checkpoints in a folder, in this form; returns what `trained` gave."""
    folder.mkdir(exist_ok=True)
    found = trained()
    for content in found:
        form(folder, *content)
    return found
