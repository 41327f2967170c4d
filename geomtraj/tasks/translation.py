"""Translation of user interface sentences, from Django's message files or from any file of sentence pairs."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtraj.errors import InputError, unknown_name
from geomtraj.seeding import generator
from geomtraj.tasks.base import Task
from geomtraj.tasks.subwords import END, PAD, START, Subwords, padded, trimmed
from geomtraj.tasks.tables import read_pairs
from geomtraj.tasks.transformer import EncoderDecoder

MICRO_BATCH = 32


def translation_losses(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats of each target token, shape (B, T), and weights (B, T) that are 0 at padding, else 1."""
    source, target, following = batch
    losses = F.cross_entropy(model(source, target).flatten(0, 1), following.flatten(), reduction="none")
    return losses.view_as(following), (following != PAD).to(losses.dtype)


class Translation(Task):
    """An encoder-decoder transformer on aligned sentences, English and one other language of Django's messages.

    The evaluation set is one fixed draw of pairs kept out of training; of pairs with the same source, whatever the
    case, the first counts. Pairs with more than `context` subwords on a side, the target's start among them, are left
    out. The subwords of each language are learned from the training pairs. The data is that of the installed Django.

    Options: language (as Django names it: de, fr, es, pt_BR, ...), layers (of encoder and decoder each), width,
    heads, context, vocabulary (subwords of a language at most), batch_size, eval_pairs (at most; never more than a
    quarter), held_out (False evaluates on that draw without keeping it out of training), path (of a UTF-8 file with
    tabs between columns and no header, or None), source_column and target_column (from 1), device, dtype.

    Raises:
        InputError: Width is no multiple of heads; the file cannot be read, lacks a column or has too few pairs; there
            is no Django, or it lacks the language.
    """

    name = "translation"
    defaults = {  # noqa: RUF012
        "language": "de",
        "layers": 2,
        "width": 48,
        "heads": 4,
        "context": 40,
        "vocabulary": 192,
        "batch_size": 32,
        "eval_pairs": 64,
        "held_out": True,
        "path": None,
        "source_column": 1,
        "target_column": 2,
    }
    default_steps = 300
    loss = staticmethod(translation_losses)

    def __init__(self, **options: Any):
        super().__init__(**options)
        o = self.options
        if o["width"] % o["heads"]:
            raise InputError(f"width {o['width']} is no multiple of heads {o['heads']}: choose width = k * heads.")
        if o["path"] is not None:
            o["path"] = str(Path(o["path"]).resolve())  # a stored run may be measured from another folder
        self._data  # noqa: B018  read the pairs now, so that a bad path is told before any work

    @property
    def vocabularies(self) -> tuple[Subwords, Subwords]:
        """The subwords of source and target, learned from the training pairs."""
        return self._data.vocabularies

    def build(self) -> nn.Module:
        """The encoder and the decoder."""
        o = self.options
        source, target = self.vocabularies
        return EncoderDecoder(len(source), len(target), o["context"], o["layers"], o["width"], o["heads"])

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random training pairs: source (B, S), target (B, T) and following tokens (B, T), padded at the end."""
        rows = self._data.train
        return self._take(rows[self.random_rows(len(rows), step, seed)])

    def evaluation(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The pairs kept out of training, up to 32 in a micro-batch."""
        return [self._take(rows) for rows in self._data.evaluation.split(MICRO_BATCH)]

    def _take(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        source, target = (trimmed(side[rows]).to(self.device) for side in (self._data.source, self._data.target))
        # The end is fed only where a longer target of the batch makes room for it, and what follows it is padding.
        return source, target[:, :-1].contiguous(), target[:, 1:].contiguous()

    @cached_property
    def _data(self) -> _Pairs:
        o = self.options
        if o["path"] is None:
            where, pairs = f"Django's {o['language']} messages", django_pairs(o["language"])
        else:
            where, pairs = o["path"], read_pairs(o["path"], o["source_column"], o["target_column"])
        pairs = list({source.casefold(): (source, target) for source, target in reversed(pairs)}.values())[::-1]
        order = torch.randperm(len(pairs), generator=generator(0, "pairs kept out of training")).tolist()
        wanted = min(o["eval_pairs"], len(pairs) // 4)
        held_out = set(order[:wanted])
        train = [i for i in range(len(pairs)) if i not in held_out or not o["held_out"]]
        source_words, target_words = (Subwords((pairs[i][side] for i in train), o["vocabulary"]) for side in (0, 1))
        source = [source_words.encode(text) for text, _ in pairs]
        target = [[START, *target_words.encode(text), END] for _, text in pairs]
        short = {i for i in range(len(pairs)) if max(len(source[i]), len(target[i]) - 1) <= o["context"]}
        train = [i for i in train if i in short]
        # Pairs of like lengths share a micro-batch, which spares padding.
        evaluation = sorted(held_out & short, key=lambda i: (len(target[i]), i))
        if len(train) < 6 or not evaluation:
            raise InputError(
                f"{where} gives {len(pairs)} different pairs, {len(short)} of them within context {o['context']}: "
                "give at least 8 such pairs, or a larger context."
            )
        return _Pairs(
            (source_words, target_words), padded(source), padded(target), torch.tensor(train), torch.tensor(evaluation)
        )


class _Pairs(NamedTuple):
    vocabularies: tuple[Subwords, Subwords]
    source: Tensor
    target: Tensor
    train: Tensor
    evaluation: Tensor


def django_pairs(language: str) -> list[tuple[str, str]]:
    """English sentences of Django and its parts with their translations, in the order of files and messages.

    Of a sentence with forms for several numbers the singular is taken.

    Raises:
        InputError: Django is not installed, or has no such language.
    """
    package = find_spec("django")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "task translation reads Django's message files, and Django is not installed: "
            "run pip install 'geomtraj[translation]', or give the path of your own pairs."
        )
    root = Path(next(iter(package.submodule_search_locations)))
    file = "LC_MESSAGES/django.mo"
    languages = sorted(found.parent.parent.name for found in root.glob(f"conf/locale/*/{file}"))
    if language not in languages:
        raise unknown_name("language of Django", language, languages)
    files = [root / "conf/locale" / language / file, *sorted(root.glob(f"contrib/*/locale/{language}/{file}"))]
    return [pair for file in files for pair in read_messages(file)]


def read_messages(path: Path) -> Iterator[tuple[str, str]]:
    """Messages of a compiled gettext file (.mo, UTF-8) with their translations; contexts and plurals are left out.

    Source: GNU gettext manual, "The Format of GNU MO Files".
    """
    data = path.read_bytes()
    order = "<" if data.startswith(b"\xde\x12\x04\x95") else ">"
    count, sources, targets = struct.unpack_from(f"{order}3I", data, 8)

    def text(table: int, i: int) -> str:
        length, start = struct.unpack_from(f"{order}2I", data, table + 8 * i)
        singular = data[start : start + length].split(b"\0")[0].split(b"\x04")[-1]
        return " ".join(singular.decode("utf-8").split())

    for i in range(count):
        source, target = text(sources, i), text(targets, i)
        if source and target:  # the empty message is the file's header
            yield source, target
