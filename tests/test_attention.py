"""How query, key and value lie in a fused matrix is found out from the model, or it stays whole."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import geomtraj as gt


def softmax(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def normalised(q, k, v):
    return softmax(F.layer_norm(q, q.shape[-1:]), F.layer_norm(k, k.shape[-1:]), v)


def linear(q, k, v):
    return (F.elu(q) + 1) @ ((F.elu(k) + 1).mT @ v)


# How the outputs y (B, T, ...) of the fused map become queries, keys and values, each of some heads of length d.
SPLITS = {
    "parts": lambda y, heads, kv, d: y.split([heads * d, kv * d, kv * d], -1),
    "heads": lambda y, heads, kv, d: y.unflatten(-1, (kv, -1)).split([heads // kv * d, d, d], -1),
    "entries": lambda y, heads, kv, d: y.unflatten(-1, (heads * d, 3)).unbind(-1),
    "other order": lambda y, heads, kv, d: [y.split([heads * d, kv * d, kv * d], -1)[i] for i in (0, 2, 1)],
    "runs, other order": lambda y, heads, kv, d: [y.unflatten(-1, (2, -1)).chunk(3, -1)[i] for i in (0, 2, 1)],
    "nonsense": lambda y, heads, kv, d: (y[..., :-1] * y[..., 1:]).mean(-1, keepdim=True).sin().add(y).chunk(3, -1),
}


class Conv1D(nn.Module):
    """Weight (inputs, outputs), as in Hugging Face's GPT-2."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.1 * torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class OwnBiases(nn.Module):
    """A fused map whose queries and values have biases that are parameters of their own, as in BEiT."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.qkv = nn.Linear(inputs, outputs, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(outputs // 3)), nn.Parameter(torch.randn(outputs // 3))
        self.weight = self.qkv.weight

    def forward(self, x):
        return self.qkv(x) + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])


class Attention(nn.Module):
    def __init__(self, name, lie, attend=softmax, *, width=8, heads=4, kv=4, length=2, tell=True, conv1d=False):
        super().__init__()
        self.name, self.lie, self.attend, self.sizes = name, SPLITS[lie], attend, (heads, kv, length)
        if tell:
            self.num_heads = heads
        self.embedding = nn.Embedding(5, width)
        outputs = (heads + 2 * kv) * length
        setattr(self, name, Conv1D(outputs, width) if conv1d else nn.Linear(width, outputs))
        self.proj, self.head = nn.Linear(heads * length, width), nn.Linear(width, 5)

    def forward(self, tokens):
        heads, kv, length = self.sizes
        fused = getattr(self, self.name)(F.layer_norm(self.embedding(tokens), self.embedding.weight.shape[1:]))
        q, k, v = (part.reshape(*tokens.shape, -1, length).transpose(1, 2) for part in self.lie(fused, *self.sizes))
        k, v = (part.repeat_interleave(heads // kv, 1) for part in (k, v))
        mixed = self.attend(q, k, v)
        self.seen = q, k, v  # of the last pass
        return self.head(self.proj(mixed.transpose(1, 2).flatten(2)))


def tokens_loss(model, tokens):
    return F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")


def problem_of(*args, dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = Attention(*args, **options).to(dtype)
    return gt.Problem(model, tokens_loss, [torch.randint(0, 5, (3, 6))])


def parts_reached(problem, fused):
    """For each part the block whose rows it comes from, by gradients."""
    model, block = problem.model, {}
    tokens_loss(model, problem.batches[0])
    for part, values in zip("qkv", model.seen, strict=True):
        (grad,) = torch.autograd.grad(values.square().sum(), getattr(model, fused).weight, retain_graph=True)
        flat = torch.zeros(problem.size, dtype=grad.dtype)
        flat[problem.layout[f"{fused}.weight"].slice] = grad.flatten()
        block[part] = [name for name, b in problem.blocks.items() if bool(b.take(flat).any())]
    return block


@pytest.mark.parametrize("name", ["qkv", "Wqkv", "query_key_value", "c_attn", "qkv_proj", "to_qkv"])
@pytest.mark.parametrize("lie", ["parts", "heads", "entries", "other order", "runs, other order"])
def test_the_parts_are_those_that_attention_uses(name, lie):
    problem = problem_of(name, lie)
    assert parts_reached(problem, name) == {part: [f"{name}.weight[{part}]"] for part in "qkv"}
    assert [problem.blocks[f"{name}.bias[{part}]"].shape for part in "qkv"] == [(8,)] * 3


@pytest.mark.parametrize("options", [
    {"dtype": torch.float32}, {"tell": False}, {"attend": normalised}, {"width": 6}, {"conv1d": True}, {"kv": 2},
    {"kv": 1, "tell": False}, {"kv": 1, "length": 4}, {"width": 16, "heads": 2, "kv": 2, "length": 8},
])  # fmt: skip
@pytest.mark.parametrize("lie", ["parts", "heads"])
def test_in_any_precision_width_and_number_of_shared_heads(lie, options):
    problem = problem_of("qkv", lie, **options)
    assert parts_reached(problem, "qkv") == {part: [f"qkv.weight[{part}]"] for part in "qkv"}
    heads, kv, length = problem.model.sizes
    axis = 1 if options.get("conv1d") else 0
    assert [problem.blocks[f"qkv.weight[{p}]"].shape[axis] for p in "qkv"] == [heads * length, kv * length, kv * length]


def test_biases_of_their_own_are_doubled_with_their_queries():
    torch.manual_seed(0)
    model = Attention("other", "parts").double()
    model.other = OwnBiases(24, 8).double()
    problem = gt.Problem(model, tokens_loss, [torch.randint(0, 5, (3, 6))])
    assert [block.shape for block in problem.blocks.of_parameter("other.qkv.weight")] == [(8, 8)] * 3


def test_rows_without_effect_are_no_queries_and_keys():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.query_key_value, self.num_heads = nn.Linear(8, 24), 2

        def forward(self, x):
            return self.query_key_value(x)[..., :8].softmax(-1)

    problem = gt.Problem(First(), lambda m, x: m(x).square().sum(1), [torch.randn(4, 8)])
    assert list(problem.blocks) == list(problem.layout)


def test_what_shows_no_known_order_stays_whole_and_is_said():
    for options in [("nonsense",), ("parts", linear), ("heads", linear)]:
        problem = problem_of("qkv", *options)
        assert list(problem.blocks) == list(problem.layout)
        assert "qkv.weight (24, 8) looks fused" in repr(problem.blocks)


def test_a_layer_that_has_no_effect_yet_is_told_by_its_random_perturbation():
    torch.manual_seed(0)
    model = Attention("query_key_value", "heads").double()
    nn.init.zeros_(model.proj.weight)
    problem = gt.Problem(model, tokens_loss, [torch.randint(0, 5, (3, 6))])
    assert problem.blocks["query_key_value.weight[k]"].pieces[0].cuts[0].groups == 4


def test_a_loss_that_does_not_take_other_parameters_leaves_it_to_the_name():
    model = Attention("qkv", "parts").double()
    start = [p.detach().clone() for p in model.parameters()]

    def stubborn(m, tokens):
        assert all(torch.equal(p, q) for p, q in zip(m.parameters(), start, strict=True))
        return tokens_loss(m, tokens)

    problem = gt.Problem(model, stubborn, [torch.randint(0, 5, (3, 6))])
    assert len(problem.blocks.of_parameter("qkv.weight")) == 3


def test_where_the_loss_cannot_tell_only_an_ordered_name_is_believed():
    def around_it(model, tokens):
        return model.head(model.embedding(tokens)).square().mean((1, 2))

    for name, parts in [("qkv", 3), ("query_key_value", 1)]:
        problem = gt.Problem(Attention(name, "parts"), around_it, [torch.randint(0, 5, (3, 6))])
        assert len(problem.blocks.of_parameter(f"{name}.weight")) == parts


@pytest.mark.parametrize("sizes", [(8, 24), (8, 25), (12, 8), (24, 7)])
def test_other_shapes_are_no_fused_matrices(sizes):
    outputs = 24 if sizes == (8, 24) else sizes[1]
    model = nn.ModuleDict({"qkv": nn.Linear(sizes[0], outputs)})
    problem = gt.Problem(model, lambda m, x: m["qkv"](x).square().sum(1), [torch.randn(3, sizes[0])])
    assert len(problem.blocks) == (6 if sizes == (8, 24) else 2)


def test_the_model_and_the_random_state_are_as_before():
    torch.manual_seed(0)
    model = Attention("qkv", "heads")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = torch.get_rng_state()
    gt.Problem(model, tokens_loss, [torch.zeros(3, 6, dtype=torch.long)])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"kdim": 4, "vdim": 6}, {"bias": False}])
def test_multihead_attention_with_joint_and_separate_projections(options):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

        def forward(self, x):
            keys, values = x[..., : options.get("kdim")], x[..., : options.get("vdim")]
            return self.attention(x, keys, values, need_weights=False)[0]

    problem = gt.Problem(Model().double(), lambda m, x: m(x).square().mean(-1), [torch.randn(2, 3, 8).double()])
    whole = gt.Hessian(problem).dense()
    fused = [n for n in ("in_proj_weight", "in_proj_bias") if f"attention.{n}" in problem.layout]
    assert [n for n in problem.blocks if "in_proj" in n] == [f"attention.{n}[{p}]" for n in fused for p in "qkv"]
    for name in fused:
        slot = problem.layout[f"attention.{name}"].slice
        third = (slot.stop - slot.start) // 3
        keys = slice(slot.start + third, slot.start + 2 * third)
        block = gt.Hessian(problem).block(f"attention.{name}[k]").dense()
        assert torch.allclose(block, whole[keys, keys], rtol=1e-9, atol=1e-12)
