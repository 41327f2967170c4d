import pytest
import torch
from models import cross_entropy
from torch import nn

import geomtraj as gt
from geomtraj.errors import InputError
from geomtraj.sampling import minibatches


def problem(sizes=(5, 3, 4), **options):
    x, y = torch.arange(24.0).reshape(12, 2), torch.arange(12) % 3
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    return gt.Problem(nn.Linear(2, 3), lambda m, b: cross_entropy(m, (b[0] / 9, b[1])), batches, **options)


def test_each_minibatch_has_distinct_examples_drawn_evenly():
    drawn = minibatches(problem(), 5, 400, 0)
    rows = [(x[:, 0] / 2).long() for x, _ in drawn]
    assert all(len(r.unique()) == len(r) == 5 for r in rows)
    assert all(
        torch.equal(y, r % 3) and torch.equal(x[:, 1], x[:, 0] + 1) for (x, y), r in zip(drawn, rows, strict=True)
    )
    counts = torch.bincount(torch.cat(rows), minlength=12) / 400
    assert (counts - 5 / 12).abs().max() < 4 * (5 / 12 * 7 / 12 / 400) ** 0.5
    again = minibatches(problem((12,)), 5, 400, 0)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(drawn, again, strict=True))
    assert not torch.equal(minibatches(problem(), 5, 1, 1)[0][0], drawn[0][0])
    assert torch.equal(minibatches(problem(), 12, 1, 0)[0][1], torch.arange(12) % 3)


def test_batches_of_any_form():
    x = torch.arange(6.0)[:, None]
    batches = [{"x": x[:4], "more": [x[:4].numpy()], "name": "a"}, {"x": x[4:], "more": [x[4:].numpy()], "name": "a"}]
    measured = gt.Problem(nn.Linear(1, 1), lambda m, b: m(b["x"])[:, 0], batches)
    (drawn,) = minibatches(measured, 6, 1, 0)
    assert torch.equal(drawn["x"], x) and (drawn["more"][0] == x.numpy()).all() and drawn["name"] == "a"


@pytest.mark.parametrize(
    ("size", "count", "sentence"),
    [(13, 1, "13 examples cannot be drawn from 12"), (0, 1, "size must be"), (2, True, "count must be")],
)
def test_numbers_out_of_range(size, count, sentence):
    with pytest.raises(InputError, match=sentence):
        minibatches(problem(), size, count, 0)


def test_batches_that_cannot_be_taken_apart():
    def lengths(m, b):
        return m(b[0]).mean((1, 2))

    model = nn.Linear(2, 1)
    ragged = gt.Problem(model, lengths, [(torch.ones(2, 3, 2),), (torch.ones(2, 4, 2),)])
    with pytest.raises(InputError, match="different shapes"):
        minibatches(ragged, 4, 1, 0)
    shared = gt.Problem(model, lambda m, b: (m(b[0]) + b[1].sum())[:, 0], [(torch.ones(4, 2), torch.ones(3))])
    with pytest.raises(InputError, match="no axis of examples in common"):
        minibatches(shared, 2, 1, 0)
