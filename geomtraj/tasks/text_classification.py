"""Which section a passage comes from, on CPython's own help texts; or texts and labels from any CSV file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtraj.errors import InputError
from geomtraj.seeding import generator
from geomtraj.tasks.base import Task
from geomtraj.tasks.subwords import Subwords, padded, trimmed
from geomtraj.tasks.tables import read_labelled
from geomtraj.tasks.transformer import Classifier

MICRO_BATCH = 32
PASSAGE = 16
"""Words of a passage of pydoc's sections."""


def class_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy in nats of each text, shape (B,)."""
    tokens, labels = batch
    return F.cross_entropy(model(tokens), labels, reduction="none")


class TextClassification(Task):
    """A transformer encoder of about 140,000 parameters that names the section of pydoc that a passage comes from.

    The sections' sizes have a heavy tail, and so have the classes. A text longer than `context` subwords is cut.
    The evaluation set is one fixed draw of rows kept out of training, of classes that training still sees; equal texts
    count once. The subwords are learned from the training rows. The data is that of the running Python.

    Options: layers, width, heads, context, vocabulary (subwords at most), batch_size, eval_examples (at most; never
    more than a quarter of the rows), held_out (False evaluates on that draw without keeping it out of training), path
    (of a CSV file with a header, or None), text_column, label_column, device, dtype.

    Raises:
        InputError: Width is no multiple of heads; the file cannot be read, lacks a column or has too few rows.
    """

    name = "text-classification"
    defaults = {  # noqa: RUF012
        "layers": 2,
        "width": 64,
        "heads": 4,
        "context": 48,
        "vocabulary": 512,
        "batch_size": 32,
        "eval_examples": 32,
        "held_out": True,
        "path": None,
        "text_column": "text",
        "label_column": "label",
    }
    default_steps = 600
    loss = staticmethod(class_losses)

    def __init__(self, **options: Any):
        super().__init__(**options)
        o = self.options
        if o["width"] % o["heads"]:
            raise InputError(f"width {o['width']} is no multiple of heads {o['heads']}: choose width = k * heads.")
        if o["path"] is not None:
            o["path"] = str(Path(o["path"]).resolve())  # a stored run may be measured from another folder
        self._data  # noqa: B018  read the rows now, so that a bad path is told before any work

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels in order; the class of a label is its place here."""
        return self._data.classes

    @property
    def vocabulary(self) -> Subwords:
        """The subwords, learned from the training rows."""
        return self._data.vocabulary

    def build(self) -> nn.Module:
        """The classifier."""
        o = self.options
        return Classifier(
            len(self.vocabulary), o["context"], o["layers"], o["width"], o["heads"], len(self._data.classes)
        )

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Random training rows: tokens (B, T) padded at the end, and classes (B,)."""
        rows = self._data.train
        return self._take(rows[self.random_rows(len(rows), step, seed)])

    def evaluation(self) -> list[tuple[Tensor, Tensor]]:
        """The rows kept out of training, up to 32 in a micro-batch."""
        return [self._take(rows) for rows in self._data.evaluation.split(MICRO_BATCH)]

    def _take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        tokens, labels = self._data.tokens[rows], self._data.labels[rows]
        return trimmed(tokens).to(self.device), labels.to(self.device)

    @cached_property
    def _data(self) -> _Rows:
        o = self.options
        path = o["path"]
        rows = pydoc_passages() if path is None else read_labelled(path, o["text_column"], o["label_column"])
        labels_of = dict(reversed(rows))  # the first row of a text counts
        texts = list(dict.fromkeys(text for text, _ in rows))
        labels = [labels_of[text] for text in texts]
        classes = tuple(sorted(set(labels)))
        if len(texts) < 8 or len(classes) < 2:
            raise InputError(
                f"{path} has {len(texts)} different texts in {len(classes)} classes: "
                "give at least 8 texts in 2 classes."
            )
        held_out = _draw(labels, min(o["eval_examples"], len(texts) // 4))
        if not held_out:
            raise InputError(
                f"every class of {path} has a single text, so none can be kept out: give more of each class."
            )
        train = [i for i in range(len(texts)) if i not in held_out or not o["held_out"]]
        vocabulary = Subwords((texts[i] for i in train), o["vocabulary"])
        tokens = padded([vocabulary.encode(text)[: o["context"]] for text in texts])
        index = {label: k for k, label in enumerate(classes)}
        return _Rows(
            vocabulary,
            classes,
            tokens,
            torch.tensor([index[label] for label in labels]),
            torch.tensor(train),
            torch.tensor(sorted(held_out)),
        )


class _Rows(NamedTuple):
    vocabulary: Subwords
    classes: tuple[str, ...]
    tokens: Tensor
    labels: Tensor
    train: Tensor
    evaluation: Tensor


def _draw(labels: Sequence[str], wanted: int) -> set[int]:
    """Rows drawn at random, always the same, that leave at least one row of each class."""
    left = Counter(labels)
    drawn: set[int] = set()
    for row in torch.randperm(len(labels), generator=generator(0, "rows kept out of training")).tolist():
        if len(drawn) == wanted:
            break
        if left[labels[row]] > 1:
            left[labels[row]] -= 1
            drawn.add(row)
    return drawn


def pydoc_passages() -> list[tuple[str, str]]:
    """Passages of up to 16 words of CPython's help topics, each with the title of its topic.

    Topics contain each other; a paragraph counts to the shortest topic that has it.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    passages = []
    for title in sorted(topics, key=lambda title: (len(topics[title]), title)):
        paragraphs = dict.fromkeys(" ".join(part.split()) for part in re.split(r"\n\s*\n", topics[title]))
        words = " ".join(part for part in paragraphs if part not in seen).split()
        seen.update(paragraphs)
        passages += [(" ".join(words[i : i + PASSAGE]), title) for i in range(0, len(words), PASSAGE)]
    return passages
