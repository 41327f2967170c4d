import json
import pickle
import sys

import pytest
import torch

from geomtraj import tasks
from geomtraj.errors import InputError

SMALL = {
    "pydoc-lm": {"layers": 1, "width": 8, "heads": 2, "context": 12, "batch_size": 3, "eval_sequences": 5},
    "text-classification": {"layers": 1, "width": 8, "heads": 2, "context": 12, "batch_size": 3, "eval_examples": 5},
    "translation": {"layers": 1, "width": 8, "heads": 2, "context": 12, "batch_size": 3, "eval_pairs": 5},
    "two-layer-linear": {"d": 5},
    "digits-cnn": {"width": 2, "batch_size": 5, "eval_examples": 20},
    "digits-mlp": {"width": 6, "batch_size": 5, "eval_examples": 20},
    "mnist5k-cnn": {"width": 4, "batch_size": 10, "eval_examples": 20},
}
EVERY = pytest.mark.parametrize("name", tasks.names())


def flat(batch):
    return torch.cat([part.double().reshape(-1) for part in batch])


def weighted(task, model, batch):
    """Losses and weights of one shape."""
    result = task.loss(model, batch)
    losses, weights = result if isinstance(result, tuple) else (result, torch.ones_like(result))
    return losses, weights.expand_as(losses)


def mean(task, model, batches):
    losses, weights = zip(*(weighted(task, model, batch) for batch in batches), strict=True)
    return sum((a * b).sum() for a, b in zip(losses, weights, strict=True)) / sum(b.sum() for b in weights)


@EVERY
def test_models_and_batches_are_functions_of_their_seeds_alone(name):
    task, again = tasks.make(name, **SMALL[name]), tasks.make(name, **SMALL[name])
    rng = torch.get_rng_state()

    def theta(task, seed):
        return torch.cat([p.detach().reshape(-1) for p in task.model(seed).parameters()])

    a, b, other = theta(task, 3), theta(again, 3), theta(task, 4)
    assert torch.equal(a, b) and not torch.equal(a, other)
    assert torch.equal(flat(task.batch(7, 3)), flat(again.batch(7, 3)))
    if name != "two-layer-linear":  # a full batch is the same always
        assert not torch.equal(flat(task.batch(7, 3)), flat(task.batch(8, 3)))
        assert not torch.equal(flat(task.batch(7, 3)), flat(task.batch(7, 4)))
    assert torch.equal(torch.cat(list(map(flat, task.evaluation()))), torch.cat(list(map(flat, again.evaluation()))))
    assert torch.equal(rng, torch.get_rng_state())


@EVERY
def test_losses_are_unreduced_and_of_independent_examples(name):
    task = tasks.make(name, **SMALL[name])
    model = task.model(0)
    for batch in [task.batch(0, 0), *task.evaluation()]:
        losses = weighted(task, model, batch)[0]
        assert losses.shape[0] == len(batch[0]) and losses.dtype == task.dtype
        one_by_one = torch.cat(
            [weighted(task, model, tuple(part[i : i + 1] for part in batch))[0] for i in range(len(batch[0]))]
        )
        torch.testing.assert_close(losses, one_by_one)


@EVERY
def test_tasks_pickle_and_their_options_are_json_and_complete(name):
    task = tasks.make(name, **SMALL[name])
    again = pickle.loads(pickle.dumps(task))
    assert again.options == task.options == json.loads(json.dumps(task.options))
    assert set(task.options) >= {"device", "dtype", *SMALL[name]}
    assert torch.equal(flat(again.batch(2, 1)), flat(task.batch(2, 1)))
    pickle.loads(pickle.dumps(task.loss))
    assert tasks.make(name, **task.options).options == task.options
    assert task.default_steps > 0 and (task.default_batch_size is None or task.default_batch_size > 0)


@EVERY
def test_float64_reaches_the_losses_and_the_problem_takes_the_task(name):
    task = tasks.make(name, **SMALL[name], dtype="float64")
    model = task.model(0)
    problem = task.problem(model)
    assert problem.dtype == torch.float64 and problem.size == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(problem.loss(), mean(task, model, task.evaluation()).detach())
    weight = "W1.weight" if name == "two-layer-linear" else "head.weight"
    assert list(task.problem(model, params=weight).layout) == [weight]


@EVERY
def test_some_steps_of_sgd_lower_the_evaluation_loss(name):
    task = tasks.make(name, **(SMALL[name] | ({"alpha": 0.25} if name == "two-layer-linear" else {})))
    model = task.model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def evaluate():
        with torch.no_grad():
            return mean(task, model, task.evaluation())

    before = evaluate()
    for step in range(60):
        optimizer.zero_grad()
        mean(task, model, [task.batch(step, 0)]).backward()
        optimizer.step()
    assert evaluate() < 0.9 * before


@pytest.mark.parametrize(
    "name, options, match",
    [
        ("pydoc_lm", {}, "unknown task 'pydoc_lm'.*did you mean 'pydoc-lm'"),
        ("pydoc-lm", {"widht": 3}, "unknown option of task pydoc-lm 'widht'.*did you mean 'width'"),
        ("pydoc-lm", {"width": 10, "heads": 3}, "no multiple of heads"),
        ("pydoc-lm", {"layers": 0}, "layers .* whole number of at least 1, not 0"),
        ("pydoc-lm", {"batch_size": 2.5}, "batch_size .* whole number"),
        ("pydoc-lm", {"tied": 1}, "True or False"),
        ("pydoc-lm", {"dtype": "bfloat16"}, "unknown dtype"),
        ("pydoc-lm", {"device": "gpu"}, "no device 'gpu'"),
        ("two-layer-linear", {"alpha": -1.0}, "positive number"),
        ("digits-cnn", {"eval_examples": 1797}, "at most 1000"),
    ],
)
def test_bad_options_are_named(name, options, match):
    with pytest.raises(InputError, match=match):
        tasks.make(name, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_absent_gpu_is_told():
    with pytest.raises(InputError, match="no CUDA GPU here: use device='cpu'"):
        tasks.make("two-layer-linear", device="cuda")


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"geomtraj\[tasks\]"):
        tasks.make("digits-mlp")
