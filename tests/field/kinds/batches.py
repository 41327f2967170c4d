"""Batches of every form."""

import collections
import copy
import types
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from field.entry import Situation, entries
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def columns():
    torch.manual_seed(1)
    return torch.randn(5, 2).double(), torch.randn(5).double()


def pairs(make):
    x, y = columns()
    return [make(x[:3], y[:3]), make(x[3:], y[3:])]


def fitting(x, y):
    """A situation with batches made from (x, y), and a loss that reads them by these two functions."""
    return lambda model, batch: (model(x(batch))[:, 0] - y(batch)).square()


Fields = collections.namedtuple("Fields", "items keys")


def namedtuple_of_mapping_words():
    return Situation(net(), fitting(lambda b: b.items, lambda b: b.keys), pairs(Fields))


@dataclass
class Example:
    x: torch.Tensor
    items: torch.Tensor


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    y: torch.Tensor
    note: str = "kept"


class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y


class Plain:
    def __init__(self, x, y):
        self.x, self.inner = x, {"deep": [y, None]}
        self.own = self  # a circle


class OwnMapping(collections.abc.MutableMapping):
    """One that shares what it holds with its copies."""

    def __init__(self, **held):
        self.held = held

    def __getitem__(self, key):
        return self.held[key]

    def __setitem__(self, key, value):
        self.held[key] = value

    def __delitem__(self, key):
        del self.held[key]

    def __iter__(self):
        return iter(self.held)

    def __len__(self):
        return len(self.held)


class Attributes(dict):
    def __init__(self, **held):
        super().__init__(**held)
        self.__dict__ = self

    def __deepcopy__(self, memo):
        return Attributes(**copy.deepcopy(dict(self), memo))


class Atom:
    def __init__(self, x):
        self.x, self.neighbours = x, []


def own_mapping():
    make = lambda x, y: OwnMapping(x=x, y=y)  # noqa: E731
    return Situation(net(), fitting(lambda b: b["x"].clamp_(-1, 1), lambda b: b["y"]), pairs(make))


def views_of_one_tensor():
    make = lambda x, y: {"all": x, "first": x[:, :1], "y": y}  # noqa: E731

    def loss(model, batch):
        batch["all"].clamp_(-0.5, 0.5)
        return (model(batch["all"])[:, 0] * batch["first"][:, 0] - batch["y"]).square()

    return Situation(net(), loss, pairs(make))


def attributes_that_are_items():
    make = lambda x, y: Attributes(x=x, y=y)  # noqa: E731
    return Situation(net(), fitting(lambda b: b.x.clamp_(-1, 1), lambda b: b["y"]), pairs(make))


def deque_of_tensors():
    make = lambda x, y: collections.deque([x, y], maxlen=2)  # noqa: E731
    return Situation(net(), fitting(lambda b: b[0].clamp_(-1, 1), lambda b: b[1]), pairs(make))


def objects_linked_to_each_other():
    atoms = [Atom(row) for row in columns()[0].repeat(3, 1)]
    for atom in atoms:
        atom.neighbours = [other for other in atoms if other is not atom]
    loss = lambda m, b: m(torch.stack([a.x for a in b])).square()[:, 0]  # noqa: E731
    return Situation(net(), loss, [atoms])


def dataclass_batches():
    return Situation(net(), fitting(lambda b: b.x, lambda b: b.items), pairs(Example))


def frozen_dataclass():
    return Situation(net(), fitting(lambda b: b.x, lambda b: b.y), pairs(Frozen))


def slots():
    return Situation(net(), fitting(lambda b: b.x, lambda b: b.y), pairs(Slots))


def plain_objects():
    return Situation(net(), fitting(lambda b: b.x, lambda b: b.inner["deep"][0]), pairs(Plain))


def namespace():
    make = lambda x, y: types.SimpleNamespace(items=x, values=y)  # noqa: E731
    return Situation(net(), fitting(lambda b: b.items, lambda b: b.values), pairs(make))


def numpy_arrays():
    make = lambda x, y: (x.numpy(), y.numpy())  # noqa: E731
    return Situation(net(), fitting(lambda b: torch.from_numpy(b[0]), lambda b: torch.from_numpy(b[1])), pairs(make))


def nested_with_text():
    make = lambda x, y: {"id": ["a"] * len(x), "data": {"x": x, 3: (y, 1.5, None)}}  # noqa: E731
    return Situation(net(), fitting(lambda b: b["data"]["x"], lambda b: b["data"][3][0]), pairs(make))


def user_dict():
    make = lambda x, y: collections.UserDict(x=x, y=y)  # noqa: E731
    return Situation(net(), fitting(lambda b: b["x"], lambda b: b["y"]), pairs(make))


def sparse_adjacency():
    x, _ = columns()
    links = (torch.eye(5).roll(1, 0) + torch.eye(5)).double().to_sparse()
    loss = lambda m, b: torch.sparse.mm(b[1], m(b[0])).square().sum(1)  # noqa: E731
    return Situation(net(), loss, [(x, links)], apart=False)


def compressed_rows():
    x, _ = columns()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        links = (torch.eye(5).roll(1, 0) + torch.eye(5)).double().to_sparse_csr()
    return Situation(net(), lambda m, b: (b[1] @ m(b[0])).square().sum(1), [(x, links)], apart=False)


def bag_of_words():
    torch.manual_seed(0)
    words = torch.tensor([[0, 2.0], [1, 0], [3, 0]]).double().to_sparse()
    model = nn.Linear(2, 2).double()
    return Situation(model, lambda m, b: torch.sparse.mm(b, m.weight.T).tanh().sum(1), [words], apart=False)


def jagged():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = torch.nested.nested_tensor([torch.randn(2, 2), torch.randn(3, 2)], layout=torch.jagged).double()
    loss = lambda m, b: torch.stack([m(row).tanh().sum() for row in b.unbind()])  # noqa: E731
    return Situation(net(), loss, [rows], apart=False)


def an_empty_batch():
    x, y = columns()
    return Situation(net(), fitting(lambda b: b[0], lambda b: b[1]), [(x[:0], y[:0]), (x, y), (x[:0], y[:0])])


def bare_tensors():
    x, _ = columns()
    return Situation(net(), lambda m, b: m(b).square()[:, 0], [x[:3], x[3:]])


def no_batch_at_all():
    x, y = columns()
    return Situation(net(), lambda m, b: (m(x)[:, 0] - y).square(), [None], apart=False)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(columns()[0])


def streaming_loader():
    return Situation(net(), lambda m, b: m(b).square()[:, 0], DataLoader(Stream(), batch_size=2))


def loader():
    data = TensorDataset(*columns())
    return Situation(net(), fitting(lambda b: b[0], lambda b: b[1]), DataLoader(data, batch_size=2))


def shuffling_loader():
    data = TensorDataset(*columns())
    loader = DataLoader(data, batch_size=2, shuffle=True)
    return Situation(net(), fitting(lambda b: b[0], lambda b: b[1]), loader)


def tuple_of_x_and_y():
    return Situation(net(), fitting(lambda b: b[0], lambda b: b[1]), columns())


def single_tensor():
    return Situation(net(), lambda m, b: m(b).square()[:, 0], columns()[0])


def single_array():
    return Situation(net(), lambda m, b: m(torch.from_numpy(b)).square()[:, 0], np.ones((3, 2)))


ENTRIES = entries(
    [
        namedtuple_of_mapping_words,
        own_mapping,
        views_of_one_tensor,
        attributes_that_are_items,
        deque_of_tensors,
        objects_linked_to_each_other,
        dataclass_batches,
        frozen_dataclass,
        slots,
        plain_objects,
        namespace,
        numpy_arrays,
        nested_with_text,
        user_dict,
        sparse_adjacency,
        compressed_rows,
        bag_of_words,
        jagged,
        an_empty_batch,
        bare_tensors,
        no_batch_at_all,
        streaming_loader,
        loader,
        (shuffling_loader, "the loader is shuffling"),
        (tuple_of_x_and_y, r"batches is a tuple of 2 tensors.*\[\(x, y\)\]"),
        (single_tensor, "batches is a single Tensor"),
        (single_array, "batches is a single ndarray"),
    ]
)
