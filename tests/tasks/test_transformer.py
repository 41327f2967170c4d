import pytest
import torch

import geomtraj as gt
from geomtraj.tasks.subwords import PAD
from geomtraj.tasks.text_classification import class_losses
from geomtraj.tasks.transformer import Attention, Classifier, EncoderDecoder
from geomtraj.tasks.translation import translation_losses


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def classifier(layers=2):
    model = Classifier(12, 8, layers, 4, 2, 3).double()
    return spread(model), class_losses, (lengths([[7, 3, 9, 5], [2]]), torch.tensor([0, 2]))


def translator(layers=2):
    model = EncoderDecoder(12, 12, 8, layers, 4, 2).double()
    target = lengths([[2, 5, 6], [2, 7, 8, 9, 4]])
    following = lengths([[5, 6, 3], [7, 8, 9, 4, 3]])
    return spread(model), translation_losses, (lengths([[7, 3, 9, 5], [2, 9]]), target, following)


CASES = pytest.mark.parametrize("make", [classifier, translator])


def spread(model):
    # Far from the small start, where all positions look alike.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def lengths(rows):
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def weighted(result):
    losses, weights = result if isinstance(result, tuple) else (result, torch.ones_like(result))
    return (losses * weights).sum(), weights.sum()


@CASES
def test_more_padding_changes_no_loss_and_no_gradient(make):
    model, loss, batch = make()

    def gradient(batch):
        total, weight = weighted(loss(model, batch))
        return torch.cat([total.reshape(1), weight.reshape(1), *map(torch.ravel, torch.autograd.grad(total, weights))])

    weights = list(model.parameters())
    wider = tuple(torch.nn.functional.pad(part, (0, 3)) if part.dim() == 2 else part for part in batch)
    torch.testing.assert_close(gradient(batch), gradient(wider))


@CASES
def test_a_batch_is_its_examples_without_padding(make):
    model, loss, batch = make()
    alone = [
        tuple(part[i : i + 1, : int((part[i] != PAD).sum())] if part.dim() == 2 else part[i : i + 1] for part in batch)
        for i in range(2)
    ]
    assert alone[1][0].shape[1] < alone[0][0].shape[1]
    sums = [weighted(loss(model, one)) for one in alone]
    total, weight = weighted(loss(model, batch))
    torch.testing.assert_close(total, sums[0][0] + sums[1][0])
    assert weight == sums[0][1] + sums[1][1]
    # The exact weighted mean, over ragged micro-batches too.
    expected = (total / weight).detach()
    for batches in ([batch], alone):
        torch.testing.assert_close(gt.Problem(model, loss, batches).loss(), expected)


@CASES
def test_probing_reaches_every_parameter_and_its_exact_diagonal_is_that_of_the_products(make):
    model, loss, batch = make(layers=1)
    problem = gt.Problem(model, loss, [batch])
    found = gt.diagonal(problem, "probing", 2)
    assert found.status == "ok"
    exact = gt.diagonal(problem, "exact").values
    some = torch.arange(0, problem.size, 40)
    products = gt.Hessian(problem) @ torch.eye(problem.size, dtype=torch.float64)[:, some]
    torch.testing.assert_close(exact[some], products[some, torch.arange(len(some))])
    bias = problem.layout[next(name for name in problem.layout if name.endswith("query.bias"))].slice
    assert exact[bias].abs().min() > 0  # a bias of the keys would have zeros only


def test_attention_is_that_of_torch_with_a_padding_mask():
    ours, theirs = Attention(8, 2).double(), torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.zeros(8), ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x, memory = torch.randn(3, 4, 8).double(), torch.randn(3, 5, 8).double()
    seen = torch.arange(5) < torch.tensor([[5], [3], [1]])
    expected, _ = theirs(x, memory, memory, key_padding_mask=~seen)
    torch.testing.assert_close(ours(x, memory, seen), expected)


def test_the_decoder_sees_the_whole_source_and_the_target_up_to_its_place():
    model, _, (source, target, _) = translator()
    logits = model(source, target)

    def change(tokens, i):
        changed = tokens.clone()
        changed[1, i] = 11
        return changed

    later = (model(source, change(target, 2)) - logits).abs().sum(-1)
    assert later[1, :2].max() == 0 and later[1, 2:].min() > 0 and later[0].max() == 0
    other = (model(change(source, 0), target) - logits).abs().sum(-1)
    assert other[1].min() > 0 and other[0].max() == 0
