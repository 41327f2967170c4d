import pytest
import torch
import transformers as tf

import geomtraj as gt
from geomtraj.integrations.transformers import RecorderCallback

ROWS, STEPS = 24, 9


class Stop(tf.TrainerCallback):
    def __init__(self, at):
        self.at = at

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            raise KeyboardInterrupt


def model():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3,
        max_position_embeddings=8,
    )  # fmt: skip
    return tf.BertForSequenceClassification(config)


def rows():
    rng = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(20, (ROWS, 6), generator=rng), torch.randint(3, (ROWS,), generator=rng)
    return [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]


def trainer(folder, callbacks, held_out=None, **options):
    arguments = tf.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=3,
        learning_rate=0.01, logging_steps=2, save_steps=4, report_to=[], use_cpu=True, seed=3, disable_tqdm=True,
        **options,
    )  # fmt: skip
    return tf.Trainer(model(), arguments, train_dataset=rows(), eval_dataset=held_out, callbacks=callbacks)


def final(made):
    return [p.detach().clone() for p in made.model.parameters()]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    made = trainer(tmp_path_factory.mktemp("bare"), [])
    made.train()
    return final(made)


def test_a_run_is_recorded_and_is_the_same_as_without(bare, tmp_path):
    made = trainer(tmp_path / "hf", [RecorderCallback(tmp_path / "run", gt.every(4), meta={"seed": 3})])
    made.train()
    assert all(map(torch.equal, final(made), bare))
    trajectory = gt.Trajectory(tmp_path / "run")
    assert trajectory.steps == [0, 4, 8, STEPS]
    assert trajectory.status == "complete"
    assert trajectory.manifest["optimizer"]["class"] == "AdamW"
    assert trajectory.manifest["optimizer"]["groups"][0]["lr"] == 0.01
    assert len(trajectory.manifest["optimizer"]["groups"]) == 2
    assert trajectory.meta == {"seed": 3}
    assert [row["step"] for row in trajectory.log if "loss" in row] == [2, 4, 6, 8]
    assert trajectory.log[0]["learning_rate"] < 0.01
    fresh = model()
    trajectory.load_into(fresh, STEPS)
    assert all(map(torch.equal, fresh.parameters(), bare))


def test_an_interrupted_run_goes_on_at_the_trainers_checkpoint(bare, tmp_path):
    callback = RecorderCallback(tmp_path / "run", gt.every(1))
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "hf", [callback, Stop(7)]).train()
    callback.recorder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # as the end of the process would
    before = gt.Trajectory(tmp_path / "run")
    assert before.steps == list(range(8))
    with pytest.raises(gt.InputError, match="already holds a trajectory"):
        trainer(tmp_path / "hf", [RecorderCallback(tmp_path / "run", gt.every(1))]).train()
    made = trainer(tmp_path / "hf", [RecorderCallback(tmp_path / "run", gt.every(1))])
    made.train(resume_from_checkpoint=True)
    assert all(map(torch.equal, final(made), bare))
    trajectory = gt.Trajectory(tmp_path / "run")
    assert trajectory.steps == list(range(STEPS + 1))
    assert trajectory.status == "complete"
    assert [s["from_step"] for s in trajectory.manifest["sessions"]] == [0, 4]
    assert len(list((tmp_path / "run" / "iterates").glob("*.superseded"))) == 3
    once = trainer(tmp_path / "hf2", [RecorderCallback(tmp_path / "once", gt.every(1))])
    once.train()
    other = gt.Trajectory(tmp_path / "once")
    assert all(torch.equal(a.theta, b.theta) for a, b in zip(trajectory, other, strict=True))


def test_the_last_step_is_the_last_one_where_the_best_model_is_loaded_at_the_end(tmp_path):
    made = trainer(
        tmp_path / "hf", [RecorderCallback(tmp_path / "run", gt.every(100))], rows()[:4], eval_strategy="steps",
        eval_steps=4, load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    made.train()
    recorded, saved = model(), model()
    gt.Trajectory(tmp_path / "run").load_into(recorded, STEPS)
    gt.Trajectory.from_checkpoints(tmp_path / "hf").load_into(saved, STEPS)
    assert not all(map(torch.equal, final(made), saved.parameters())), "the best one is another"
    assert all(map(torch.equal, recorded.parameters(), saved.parameters()))


def test_the_trainers_checkpoints_are_a_trajectory_too(bare, tmp_path):
    trainer(tmp_path / "hf", []).train()
    trajectory = gt.Trajectory.from_checkpoints(tmp_path / "hf")
    assert trajectory.steps == [4, 8, 9]
    fresh = model()
    other = trainer(tmp_path / "other", [])
    optimizer = other.create_optimizer()
    trajectory.load_into(other.model, 9, optimizer)
    trajectory.load_into(fresh, 9)
    assert all(map(torch.equal, fresh.parameters(), bare))
    assert all(map(torch.equal, final(other), bare))
    assert {int(state["step"]) for state in optimizer.state.values()} == {9}
    assert [row["loss"] for row in trajectory.log if "loss" in row]


@pytest.mark.parametrize("options", [{"resume": True}, {"shedule": 3}])
def test_wrong_options_are_refused_when_the_callback_is_made(options, tmp_path):
    with pytest.raises(gt.InputError, match=r"resume is not for a callback|unknown option of RecorderCallback"):
        RecorderCallback(tmp_path / "run", **options)
