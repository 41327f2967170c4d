"""Blocks against hand-made splits: what is in them, what they are called, and what cannot be split."""

import numpy as np
import pytest
import torch
from models import CASES
from torch import nn

import geomtraj as gt
from geomtraj.blocks import Blocks
from geomtraj.layout import Layout
from geomtraj.tasks.gpt import GPT


def squares(model, x):
    return model(x).flatten(1).square().sum(1)


def problem_of(model, *x, **options):
    return gt.Problem(model.double(), squares, [torch.randn(*x).double()], **options)


def small_gpt(**options):
    torch.manual_seed(0)
    model = GPT(vocabulary=7, context=5, layers=2, width=4, heads=2, **options)
    return gt.Problem(model, lambda m, x: m(x).square().mean(-1), [torch.randint(0, 7, (3, 5))])


def partition(problem):
    return torch.cat([block.indices for block in problem.blocks.values()]).sort().values


def test_every_parameter_is_a_block_but_fused_ones_are_three():
    problem = small_gpt()
    expected = []
    for name in problem.layout:
        expected += [f"{name}[{part}]" for part in "qkv"] if ".qkv." in name else [name]
    assert list(problem.blocks) == expected
    assert torch.equal(partition(problem), torch.arange(problem.size))
    theta = problem.theta()
    for name, p in problem.model.named_parameters():
        if ".qkv." in name:
            for part, values in zip("qkv", p.chunk(3), strict=True):
                block = problem.blocks[f"{name}[{part}]"]
                assert block.parameter == name and block.shape == values.shape and block.size == values.numel()
                assert torch.equal(block.take(theta), values.detach().flatten())
                assert torch.equal(theta[block.indices], block.take(theta))
                assert np.array_equal(block.take(theta.numpy()), block.take(theta).numpy())
    assert "[k] (4, 4)" in repr(problem.blocks)


def test_kinds_tell_matrices_from_embeddings_and_vectors():
    kinds = {name: block.kind for name, block in small_gpt(tied=True).blocks.items()}
    assert kinds.pop("embedding.weight") == kinds.pop("position.weight") == "embedding"
    assert {n for n, kind in kinds.items() if kind == "vector"} == {n for n in kinds if "norm" in n or "bias" in n}
    assert set(kinds.values()) == {"matrix", "vector"}


def test_an_operator_of_a_part_is_the_dense_hessians_submatrix():
    case = CASES["gpt"]()
    full, problem = case.hessian(), case.problem
    ggn = gt.GGN(problem).dense()
    for globs in [
        "qkv.weight[k]",
        "*[q]",
        ["qkv.bias[v]", "norm.*", "qkv.weight"],
        "qkv.weight",
        "qkv.*",
        "out.weight",
    ]:
        chosen = problem.blocks.select(globs)
        rows = torch.cat([block.indices for block in chosen])
        part = gt.Hessian(problem).block(globs)
        assert torch.allclose(part.dense(), full[rows][:, rows], rtol=1e-9, atol=1e-12)
        assert part.layout.size == len(rows) and list(part.blocks) == [block.name for block in chosen]
        vector = torch.randn(len(rows), dtype=full.dtype)
        assert torch.allclose(gt.GGN(problem).block(globs) @ vector, ggn[rows][:, rows] @ vector)
        again = part.block(chosen[0].name)
        own = rows[: chosen[0].size]
        assert torch.allclose(again.dense(), full[own][:, own], rtol=1e-9, atol=1e-12)


def test_scalars_and_empty_parameters_are_blocks():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.none = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.empty(0, 3))
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            return self.scale * self.linear(x)

    problem = problem_of(Scaled(), 3, 2)
    assert [b.shape for b in problem.blocks.values()] == [(), (0, 3), (2, 2), (2,)]
    assert [b.size for b in problem.blocks.values()] == [1, 0, 4, 2]
    assert torch.equal(partition(problem), torch.arange(7))
    assert gt.Hessian(problem).block("scale").dense().shape == (1, 1)
    assert torch.isfinite(problem.loss()) and problem.gradient().shape == (7,)


@pytest.mark.parametrize("name", ["conv[0]", "a*b", "c?d", "e/f", "[!g]", "h[q]"])
def test_an_exact_name_wins_over_a_glob_whatever_is_in_it(name):
    model = nn.ModuleDict({name: nn.Linear(2, 2), "conv0": nn.Linear(2, 2), "aXb": nn.Linear(2, 2)}).double()
    problem = gt.Problem(
        model, lambda m, x: sum(part(x).square().sum(1) for part in m.values()), [torch.ones(3, 2).double()]
    )
    weight = f"{name}.weight"
    assert [block.name for block in problem.blocks.select(weight)] == [weight]
    assert list(gt.Hessian(problem).block(weight).layout) == problem.select(weight) == [weight]
    assert list(gt.Problem(model, problem.objective.loss, problem.batches, params=weight).layout) == [weight]


MODEL = {"w": (6, 4), "b": (6,), "x": (3, 2, 8), "s": ()}


class Bare(nn.Module):
    """Parameters of the shapes above; their squares are the loss."""

    def __init__(self, **more):
        super().__init__()
        torch.manual_seed(0)
        for name, shape in (MODEL | more).items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return x[:, 0] * sum((p**2).sum() for p in self.parameters())


def bare(blocks=None, params=None, **more):
    return gt.Problem(Bare(**more), lambda m, x: m(x), [torch.ones(2, 1)], params=params, blocks=blocks)


def values_of(problem, name):
    return problem.blocks[name].take(problem.theta()).reshape(problem.blocks[name].shape)


@pytest.mark.parametrize("how, parts", [
    (gt.split(3), lambda w: {"0": w[:2], "1": w[2:4], "2": w[4:]}),
    (gt.split(2, dim=1, names=("left", "right")), lambda w: {"left": w[:, :2], "right": w[:, 2:]}),
    (gt.split(2, dim=-1), lambda w: {"0": w[:, :2], "1": w[:, 2:]}),
    (gt.split(sizes=(1, 5)), lambda w: {"0": w[:1], "1": w[1:]}),
    (gt.split(sizes=(0, 6)), lambda w: {"0": w[:0], "1": w}),
    (gt.split(3, groups=2), lambda w: {"0": w[[0, 3]], "1": w[[1, 4]], "2": w[[2, 5]]}),
    (gt.split(sizes=(2, 1), groups=2, names=("a", "b")), lambda w: {"a": w[[0, 1, 3, 4]], "b": w[[2, 5]]}),
    (gt.split(2, dim=1, groups=2), lambda w: {"0": w[:, [0, 2]], "1": w[:, [1, 3]]}),
    (gt.split(1), lambda w: {"0": w}),
])  # fmt: skip
def test_splits_by_hand(how, parts):
    problem = bare({"w": how})
    expected = parts(problem.model.w.detach())
    assert list(problem.blocks) == [f"w[{n}]" for n in expected] + ["b", "x", "s"]
    for name, values in expected.items():
        assert torch.equal(values_of(problem, f"w[{name}]"), values)
        block = problem.blocks[f"w[{name}]"]
        assert (block.kind, block.parameter, block.size) == ("matrix", "w", values.numel())
        assert torch.equal(problem.theta()[block.indices], values.flatten())
        rows = torch.stack([problem.theta(), 2 * problem.theta()])
        assert torch.equal(block.take(rows), torch.stack([values.flatten(), 2 * values.flatten()]))
    assert torch.equal(partition(problem), torch.arange(problem.size))
    assert list(problem.layout) == list(MODEL)


def test_entries_are_carried_out_in_order_so_that_parts_are_split_and_joined():
    problem = bare({
        "[wx]": gt.split(3), "w[1]": gt.split(2, dim=1), "x[?]": gt.split(2, dim=2, names=("re", "im")),
        "imaginary": gt.join("x[*][im]"), "rest": gt.join("b", "s", "w[0]"),
    })  # fmt: skip
    w, x = problem.model.w.detach(), problem.model.x.detach()
    assert list(problem.blocks) == [
        "rest", "w[1][0]", "w[1][1]", "w[2]", "x[0][re]", "imaginary", "x[1][re]", "x[2][re]",
    ]  # fmt: skip
    assert torch.equal(values_of(problem, "w[1][1]"), w[2:4, 2:])
    assert torch.equal(values_of(problem, "x[1][re]"), x[1:2, :, :4])
    assert torch.equal(values_of(problem, "imaginary"), x[:, :, 4:].flatten())
    rest = problem.blocks["rest"]
    assert torch.equal(values_of(problem, "rest"), torch.cat([problem.model.b, problem.model.s[None], w[:2].flatten()]))
    assert (rest.shape, rest.kind, rest.parameter) == ((15,), "matrix", "b, s, w")
    assert torch.equal(partition(problem), torch.arange(problem.size))
    full, entries = gt.Hessian(problem), rest.indices
    assert torch.allclose(full.block("rest").dense(), full.dense()[entries][:, entries])
    assert full.block(["rest", "w[1][0]"]).layout.size == 19
    assert torch.allclose(full.block("w").dense(), full.dense()[:24, :24]), "a parameter is there as before"


def test_a_mapping_leaves_the_other_fused_matrices_split_and_can_say_otherwise():
    for blocks, names in [
        ({"*.qkv.weight": gt.split(2, dim=1)}, ["weight[0]", "weight[1]", "bias[q]", "bias[k]", "bias[v]"]),
        ({"*.qkv.bias": False}, ["weight[q]", "weight[k]", "weight[v]", "bias"]),
        ({"*.qkv.*": gt.split(3, names=("a", "b", "c"))}, [f"{p}[{n}]" for p in ("weight", "bias") for n in "abc"]),
        ({"*[q]": gt.split(2)}, [f"{p}[{n}]" for p in ("weight", "bias") for n in ("q][0", "q][1", "k", "v")]),
        (False, ["weight", "bias"]),
    ]:
        torch.manual_seed(0)
        model = GPT(vocabulary=7, context=5, layers=1, width=4, heads=2)
        x = torch.randint(0, 7, (3, 5))
        problem = gt.Problem(model, lambda m, x: m(x).square().mean(-1), [x], blocks=blocks)
        start = "blocks.0.attention.qkv."
        assert [name.removeprefix(start) for name in problem.blocks if start in name] == names
        joined = gt.Problem(model, problem.objective.loss, [x], blocks={"layer": gt.join("blocks.0.*")})
        assert [name for name in joined.blocks if name not in joined.layout] == ["layer"]
        assert joined.fingerprint() != problem.fingerprint(), "results of other blocks are other results"


@pytest.mark.parametrize("blocks, said", [
    ({"w": gt.split(4)}, r"'w' of shape \(6, 4\) does not divide into 4 equal parts along axis 0, which has 6"),
    ({"w": gt.split(3, groups=4)}, r"\(6, 4\) does not divide into 4 groups of 3 equal parts"),
    ({"w": gt.split(sizes=(2, 3))}, r"\(6, 4\) does not divide into parts of \(2, 3\) .* has 6 entries and not 5"),
    ({"b": gt.split(2, dim=1)}, r"'b' of shape \(6,\) has no axis 1"),
    ({"b": gt.split(2, dim=-2)}, r"'b' of shape \(6,\) has no axis -2"),
    ({"s": gt.split(1)}, r"'s' of shape \(\) has no axis 0"),
    ({"v*": gt.split(2)}, "unknown block, parameter or glob in blocks 'v.'"),
    ({"w": gt.split(2), "?": gt.split(2)}, r"'\?' overlaps with 'w': both take 'w' of shape \(6, 4\)"),
    ({"w": False, "*": gt.join("w", "b")}, r"'\*' overlaps with 'w': both take 'w' of shape \(6, 4\)"),
    ({"one": gt.join("w", "b"), "two": gt.join("b", "x")}, r"'two' overlaps with 'one': both take 'b' of shape \(6,\)"),
    ({"one": gt.join("w", "b"), "one ": gt.split(2)}, "unknown block"),
    ({"one": gt.join("w", "b"), "on?": gt.split(2)}, r"overlaps with 'one': both take 'one' of shape \(30,\)"),
    ({"all": gt.join("w", "b")}, r"would make a block 'all' of shape \(30,\)"),
    ({"x": gt.join("w", "b")}, r"'x' would make a block 'x' of shape \(30,\), and there is another"),
    ({"w": "qkv"}, r"entry 'w': 'qkv'; write glob: gt.split"),
    ({3: gt.split(2)}, "entry 3"),
    (True, "blocks is True"),
    (["w"], r"blocks is \['w'\]"),
    (gt.split(3), "a mapping such as"),
])  # fmt: skip
def test_what_cannot_be_split_is_one_sentence(blocks, said):
    with pytest.raises(gt.InputError, match=said) as error:
        bare(blocks)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("call, said", [
    (lambda: gt.split(), "either a number of equal parts or their sizes"),
    (lambda: gt.split(2, sizes=(1, 1)), "either a number of equal parts or their sizes"),
    (lambda: gt.split(0), "integer of at least 1, not 0"),
    (lambda: gt.split(True), "not True"),
    (lambda: gt.split(2.0), "not 2.0"),
    (lambda: gt.split(2, dim="rows"), "not 'rows'"),
    (lambda: gt.split(2, groups=0), "groups must be"),
    (lambda: gt.split(3, names="qkv"), "give a tuple of 3 names"),
    (lambda: gt.split(3, names=("q", "k")), "3 parts and names"),
    (lambda: gt.split(2, names=("q", "q")), "needs its own"),
    (lambda: gt.split(2, names=("q", "")), "2 parts and names"),
    (lambda: gt.split(sizes=()), "0 parts"),
    (lambda: gt.split(sizes=(3, -1)), "at least 0, not -1"),
    (lambda: gt.join(), "takes names or globs"),
    (lambda: gt.join(["w"]), "takes names or globs"),
])  # fmt: skip
def test_splits_that_make_no_sense_are_refused_at_once(call, said):
    with pytest.raises(gt.InputError, match=said):
        call()


def test_names_of_parts_that_are_taken_already():
    more = {"w[0]": (3, 2)}
    with pytest.raises(gt.InputError, match=r"'w' would make a block 'w\[0\]'"):
        bare({"w": gt.split(2)}, **more)
    problem = bare({"w[[]0]": gt.split(3)}, **more)
    assert [n for n in problem.blocks if n.startswith("w")] == ["w", "w[0][0]", "w[0][1]", "w[0][2]"]
    taken = nn.ParameterDict({"qkv": torch.randn(12, 4), "qkv[k]": torch.randn(2)})
    problem = gt.Problem(taken, lambda m, x: x[:, 0] * sum((p**2).sum() for p in m.values()), [torch.ones(2, 1)])
    assert list(problem.blocks) == ["qkv", "qkv[k]"], "a name that is taken is not given a second time"


def test_selected_and_tied_parameters():
    problem = small_gpt(tied=True)
    some = gt.Problem(problem.model, problem.objective.loss, problem.batches, params=["head.weight", "*.qkv.bias"],
                      blocks={"head.weight": gt.split(7)})  # fmt: skip
    assert list(some.blocks)[:2] == ["embedding.weight[0]", "embedding.weight[1]"] and len(some.blocks) == 7 + 2 * 3
    assert some.blocks["head.weight[3]"] is some.blocks["embedding.weight[3]"]
    assert some.blocks["head.weight[3]"].kind == "embedding"
    assert [b.name for b in some.blocks.select("head.*")] == [f"embedding.weight[{i}]" for i in range(7)]
    assert [b.name for b in some.blocks.select(["head.weight[2]", "*.1.*[k]"])] == [
        "embedding.weight[2]", "blocks.1.attention.qkv.bias[k]",
    ]  # fmt: skip
    with pytest.raises(gt.InputError, match=r"unknown block, parameter or glob 'blocks.0.mlp.up.bias'"):
        some.blocks.select("blocks.0.mlp.up.bias")
    with pytest.raises(gt.InputError, match="an empty list"):
        some.blocks.select([])
    for globs in (3, [None], b"head.weight"):
        with pytest.raises(gt.InputError, match="names and globs must be strings"):
            gt.Hessian(some).block(globs)
        with pytest.raises(gt.InputError, match="names and globs must be strings"):
            gt.Problem(problem.model, problem.objective.loss, problem.batches, params=globs)
    with pytest.raises(gt.InputError, match="means 7 blocks"):
        some.blocks.find("embedding*")


def test_a_parameter_that_is_only_a_part_of_a_joined_block_is_there_too():
    problem = bare({"two": gt.join("w", "b"), "x": gt.split(3), "tops": gt.join("x[0]", "x[2]")})
    assert list(problem.blocks) == ["two", "tops", "x[1]", "s"]
    assert [b.name for b in problem.blocks.select(["b", "s"])] == ["b", "s"]
    assert [b.name for b in problem.blocks.select(["b", "w"])] == ["two"]
    assert [b.name for b in problem.blocks.select("x")] == ["tops", "x[1]"]
    assert problem.blocks.find("x").shape == (3, 2, 8) and problem.blocks.find("b").indices[0] == 24
    hessian = gt.Hessian(problem)
    assert list(hessian.block("b").blocks) == ["b"] and hessian.block("x").layout.size == 48
    assert list(hessian.block("x").layout) == ["x"], "the rows of a whole parameter keep their order"
    assert [b.name for b in problem.blocks.select(["two", "b"])] == ["two"]


def test_parts_of_one_parameter_in_several_joined_blocks():
    parts = {"w": gt.split(3), "x": gt.split(3), "one": gt.join("w[0]", "x[0]"), "two": gt.join("b", "x[1]")}
    blocks = bare(parts).blocks
    assert [b.name for b in blocks.select(["one", "two", "x"])] == ["one", "two", "x[2]"]
    assert [b.name for b in blocks.select("x")] == ["x"]
    with pytest.raises(gt.InputError, match="'one' and 'x' overlap"):
        blocks.select(["one", "x"])


def test_what_looks_rows_up_is_an_embedding_however_it_is_written():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.bias_table = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(4, 3))
            self.rows, self.cls_token = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(1, 1, 3))
            self.linear, self.patch_embed = nn.Linear(3, 3), nn.Linear(3, 3)
            self.rates = nn.Embedding(5, 1)

        def forward(self, tokens):
            x = nn.functional.embedding(tokens, self.table) + self.bias_table[tokens % 4] + self.cls_token
            x = x + self.rows.index_select(0, torch.tensor([0, 2])) + self.rates(tokens)
            return self.patch_embed(self.linear(x))

    problem = gt.Problem(Model(), lambda m, x: m(x).square().sum((1, 2)), [torch.tensor([[0, 1], [4, 2]])])
    kinds = {name: block.kind for name, block in problem.blocks.items()}
    embeddings = {"table", "bias_table", "rows", "cls_token", "rates.weight"}
    assert {n for n, kind in kinds.items() if kind == "embedding"} == embeddings
    assert {n for n, kind in kinds.items() if kind == "matrix"} == {"linear.weight", "patch_embed.weight"}


def test_a_fused_matrix_tells_how_far_apart_its_parts_are():
    torch.manual_seed(0)
    model = GPT(vocabulary=7, context=5, layers=1, width=8, heads=2).double()
    tokens = torch.randint(0, 7, (4, 6))

    def loss(m, t):
        return nn.functional.cross_entropy(m(t[:, :-1]).transpose(1, 2), t[:, 1:], reduction="none")

    problem = gt.Problem(model, loss, [tokens])
    name = "blocks.0.attention.qkv.weight"
    diagonal = gt.Hessian(problem).block(name).dense().diagonal().abs()
    parts = [part / part.median() for part in diagonal.reshape(3, -1)]
    entries = gt.Hessian(problem).dense().diagonal().abs()
    for part, own in zip("qkv", parts, strict=True):
        taken = problem.blocks[f"{name}[{part}]"].take(entries)
        assert float(taken.max() / taken.median()) == pytest.approx(float(own.max()))
    assert float(diagonal.max() / diagonal.median()) > 100 * max(float(own.max()) for own in parts)


def test_names_are_looked_up_and_not_searched_for(monkeypatch):
    monkeypatch.setattr("geomtraj.layout.matching", lambda *_: pytest.fail("all names were gone through"))
    monkeypatch.setattr("geomtraj.blocks.matching", lambda *_: pytest.fail("all names were gone through"))
    layout = Layout({f"p.{i}": (2, 3) for i in range(3000)}, {f"alias.{i}": f"p.{i}" for i in range(3000)})
    blocks = Blocks(layout)
    for name in [*layout, *layout.aliases]:
        assert len(blocks.select(name)) == len(layout.select(name)) == 1
    assert len(layout.select(list(layout))) == len(blocks.select(list(layout))) == 3000
