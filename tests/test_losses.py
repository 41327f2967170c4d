import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import geomtraj as gt


class Classifier(nn.Module):
    """Logits (B, C), or (B, T, C) for tokens (B, T)."""

    def __init__(self, classes=5, tokens=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Embedding(classes, 4) if tokens else nn.Linear(3, 4)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def draws(*shape, high=5, seed=1):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def ragged(labels_of):
    """Batches of 4 and 3 examples, and both in one."""
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    y = labels_of(7)
    return [(x[:4], y[:4]), (x[4:], y[4:])], (x, y)


def mean_by_torch(model, criterion, whole, turn=lambda logits: logits):
    with torch.no_grad():
        return criterion(turn(model(whole[0])), whole[1])


CRITERIA = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(label_smoothing=0.2),
    nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0])),
    nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 0.0, 0.1, 3.0]), ignore_index=1),
    nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0]), label_smoothing=0.3, ignore_index=2),
    nn.NLLLoss(weight=torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0])),
    nn.MultiMarginLoss(),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_a_criterion_of_classes_keeps_its_mean_over_ragged_batches(criterion):
    model = Classifier()
    batches, whole = ragged(lambda n: draws(n))
    problem = gt.Problem(model, criterion, batches)
    assert torch.allclose(problem.loss(), mean_by_torch(model, criterion, whole), rtol=2e-6)
    expected = torch.autograd.grad(criterion(model(whole[0]), whole[1]), list(model.parameters()))
    assert torch.allclose(problem.gradient(), torch.cat([g.flatten() for g in expected]), atol=1e-6)
    assert criterion.reduction == "mean"


@pytest.mark.parametrize(
    "criterion",
    [
        nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(delta=0.3), nn.BCEWithLogitsLoss(),
        nn.BCEWithLogitsLoss(weight=torch.tensor([1.0, 2, 3, 4, 5]), pos_weight=torch.tensor([1.0, 2, 3, 4, 5])),
        nn.KLDivLoss(reduction="batchmean"), nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.PoissonNLLLoss(), nn.MultiLabelSoftMarginLoss(),
    ],
    ids=str,
)  # fmt: skip
def test_a_criterion_of_numbers_keeps_its_mean_over_ragged_batches(criterion):
    model = Classifier()
    batches, whole = ragged(lambda n: torch.rand(n, 5, generator=torch.Generator().manual_seed(3)).softmax(1))
    problem = gt.Problem(model, criterion, batches)
    assert torch.allclose(problem.loss(), mean_by_torch(model, criterion, whole), rtol=2e-6)


def test_a_criterion_takes_token_logits_with_the_classes_last():
    model = Classifier(tokens=True)
    x, y = draws(4, 6), draws(4, 6, seed=3)
    y[0, :4] = -100
    problem = gt.Problem(model, nn.CrossEntropyLoss(label_smoothing=0.1), [(x, y)])
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(model(x).flatten(0, 1), y.flatten())
    assert torch.allclose(problem.loss(), expected)
    assert problem.examples == 4
    assert problem.total_weight == 20


def test_settings_of_a_criterion_make_another_problem():
    model, batches = Classifier(), ragged(lambda n: draws(n))[0]
    names = {gt.Problem(model, nn.CrossEntropyLoss(label_smoothing=s), batches).fingerprint() for s in (0.0, 0.1)} | {
        gt.Problem(model, gt.losses.classification, batches).fingerprint()
    }
    assert len(names) == 2, "without smoothing it is the same function as classification"


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), "no mean"),
        (nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1, 1, 1, 1]), label_smoothing=0.1), "class weight of 0"),
        (nn.CosineSimilarity(), "no criterion with a reduction"),
        (nn.TripletMarginLoss(), "takes anchor, positive, negative, not an output and a target"),
        (F.cross_entropy, "no criterion with a reduction"),
    ],
)
def test_what_is_no_mean_of_examples_is_refused(criterion, said):
    with pytest.raises(gt.InputError, match=said):
        gt.losses.from_criterion(criterion)


def test_classification_in_tuples_mappings_and_probabilities():
    model = Classifier()
    x, y = torch.randn(6, 3), draws(6)
    y[2] = -100
    expected = F.cross_entropy(model(x), y)
    named = gt.Problem(model, gt.losses.classification, [{"x": x, "labels": y}])
    assert torch.allclose(gt.Problem(model, gt.losses.classification, [(x, y)]).loss(), expected)
    assert torch.allclose(named.loss(), expected)
    soft = torch.rand(6, 5).softmax(1)
    problem = gt.Problem(model, gt.losses.classification, [(x, soft)])
    assert torch.allclose(problem.loss(), F.cross_entropy(model(x), soft))


def test_pixels_are_classified_too():
    torch.manual_seed(0)
    model, x, y = nn.Conv2d(2, 5, 1), torch.randn(3, 2, 4, 6), draws(3, 4, 6)
    problem = gt.Problem(model, gt.losses.classification, [(x, y)])
    assert torch.allclose(problem.loss(), F.cross_entropy(model(x), y))


class NanoGPT(nn.Module):
    """nanoGPT's interface: logits of all positions only where targets are given, else those of the last one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, idx, targets=None):
        x = torch.tanh(self.body(idx)).cumsum(1)
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


@pytest.mark.parametrize("model", [NanoGPT(), Classifier(tokens=True)], ids=lambda m: type(m).__name__)
def test_causal_language_models_in_tuples_and_tensors(model):
    tokens = draws(4, 7)
    x, y = tokens[:, :-1], tokens[:, 1:].clone()
    logits = model(x, y)[0] if isinstance(model, NanoGPT) else model(x)
    for batch, target in (((x, y), y), (tokens, y), ((x, y.masked_fill(y == 2, -100)), y.masked_fill(y == 2, -100))):
        problem = gt.Problem(model, gt.losses.causal_lm, [batch])
        assert torch.allclose(problem.loss(), F.cross_entropy(logits.flatten(0, 1), target.flatten()))
        assert problem.examples == 4


def test_masked_and_causal_language_models_in_mappings():
    class Named(Classifier):
        def forward(self, input_ids, attention_mask=None):
            return {"logits": super().forward(input_ids)}

    model, tokens = Named(tokens=True), draws(4, 7)
    logits = model(tokens)["logits"]
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    masked = tokens.masked_fill(draws(4, 7, seed=9) > 1, -100)
    problem = gt.Problem(model, gt.losses.masked_lm, [{"input_ids": tokens, "labels": masked}])
    assert torch.allclose(problem.loss(), F.cross_entropy(logits.flatten(0, 1), masked.flatten()))
    causal = gt.Problem(model, gt.losses.causal_lm, [{"input_ids": tokens, "attention_mask": mask}])
    target = tokens.masked_fill(mask == 0, -100)[:, 1:]
    assert torch.allclose(causal.loss(), F.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten()))


@pytest.mark.parametrize(
    ("loss", "batch", "said"),
    [
        (gt.losses.classification, torch.zeros(3, 3), "is a Tensor: a ready loss takes"),
        (gt.losses.classification, {"x": torch.zeros(3, 3)}, "no 'labels', only x"),
        (gt.losses.classification, (torch.zeros(3, 3), [1, 2, 3]), "are a list: give a tensor"),
        (gt.losses.classification, (torch.zeros(3, 3), torch.zeros(4, dtype=torch.int64)), "do not fit"),
        (gt.losses.masked_lm, (torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64)), "do not fit"),
        (gt.losses.seq2seq_lm, (torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64)), "inputs of its own"),
        (nn.CrossEntropyLoss(), (torch.zeros(3, 3), torch.zeros(4, dtype=torch.int64)), "do not fit"),
    ],
)
def test_batches_that_do_not_fit_are_refused_in_a_sentence(loss, batch, said):
    with pytest.raises(gt.InputError, match=said):
        gt.Problem(Classifier(), loss, [batch])


def test_half_precision_logits_are_taken_in_float32():
    model = Classifier().bfloat16()
    x, y = torch.randn(6, 3).bfloat16(), draws(6)
    losses, _ = gt.losses.classification(model, (x, y))
    assert losses.dtype == torch.float32


def test_a_problem_with_a_criterion_travels_to_a_worker():
    import cloudpickle

    model, (batches, _) = Classifier(), ragged(lambda n: draws(n))
    problem = gt.Problem(model, copy.copy(CRITERIA[2]), batches)
    assert torch.equal(cloudpickle.loads(cloudpickle.dumps(problem)).loss(), problem.loss())
