"""Next-character prediction on CPython's own help texts, or on any text file."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtraj.errors import InputError
from geomtraj.tasks.base import Task
from geomtraj.tasks.gpt import GPT

MICRO_BATCH = 32


def token_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy in nats of each next token, shape (B, T)."""
    tokens, following = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten(), reduction="none").view_as(following)


class PydocLM(Task):
    """A character-level GPT of about 100,000 parameters on the 0.5 MB of English in `pydoc_data.topics`.

    The evaluation set is `eval_sequences` windows spread evenly over the text; training draws random windows that
    overlap none of them. The text, and with it the vocabulary, is that of the running Python.

    Options: layers, width, heads, context, tied (embedding and output layer), batch_size, eval_sequences (at
    most; a short text gives fewer), text (path of a UTF-8 file, or None), device, dtype.

    Raises:
        InputError: Width is no multiple of heads; the text is missing, not UTF-8, or too short.
    """

    name = "pydoc-lm"
    defaults = {  # noqa: RUF012
        "layers": 2,
        "width": 64,
        "heads": 4,
        "context": 64,
        "tied": False,
        "batch_size": 32,
        "eval_sequences": 16,
        "text": None,
    }
    default_steps = 600
    loss = staticmethod(token_losses)

    def __init__(self, **options: Any):
        super().__init__(**options)
        width, heads = self.options["width"], self.options["heads"]
        if width % heads:
            raise InputError(f"width {width} is no multiple of heads {heads}: choose width = k * heads.")
        self._data  # noqa: B018  read the text now, so that a bad path is told before any work

    @property
    def vocabulary(self) -> str:
        """The characters of the text in order; the token of a character is its place here."""
        return self._data.vocabulary

    def build(self) -> nn.Module:
        """The GPT."""
        o = self.options
        return GPT(len(self.vocabulary), o["context"], o["layers"], o["width"], o["heads"], o["tied"])

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Random training windows: tokens and following tokens, each (B, T)."""
        starts = self._data.train_starts
        return self._windows(starts[self.random_rows(len(starts), step, seed)])

    def evaluation(self) -> list[tuple[Tensor, Tensor]]:
        """The windows kept out of training, up to 32 in a micro-batch."""
        return [self._windows(starts) for starts in self._data.eval_starts.split(MICRO_BATCH)]

    def _windows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        windows = self._data.tokens[starts[:, None] + torch.arange(self.options["context"] + 1)].to(self.device)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    @cached_property
    def _data(self) -> _Text:
        path, length = self.options["text"], self.options["context"] + 1
        text = pydoc_text() if path is None else read_text(path)
        if len(text) < 4 * length:
            raise InputError(
                f"the text {path or 'of pydoc'} has {len(text)} characters, context {length - 1} needs at least "
                f"{4 * length}: give a longer text or a smaller context."
            )
        codes, tokens = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), return_inverse=True)
        windows = min(self.options["eval_sequences"], len(text) // (4 * length))
        spacing = len(text) // windows
        eval_starts = torch.arange(windows) * spacing + (spacing - length) // 2
        free = torch.ones(len(text) - length + 1, dtype=torch.bool)
        for start in eval_starts.tolist():
            free[max(start - length + 1, 0) : start + length] = False
        return _Text(
            "".join(map(chr, codes)), torch.from_numpy(tokens.astype(np.int64)), free.nonzero()[:, 0], eval_starts
        )


class _Text(NamedTuple):
    vocabulary: str
    tokens: Tensor
    train_starts: Tensor
    eval_starts: Tensor


def pydoc_text() -> str:
    """CPython's help topics as one text, without trailing blanks and repeated empty lines."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[title] for title in sorted(topics))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text))


def read_text(path: str) -> str:
    """The text in a UTF-8 file.

    Raises:
        InputError: The file is missing, unreadable or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no text file {path}: give the path of a UTF-8 text.") from None
    except OSError as error:
        raise InputError(f"cannot read the text {path} ({error.strerror}): give the path of a UTF-8 text.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it, for instance with iconv -t utf-8."
        ) from error
