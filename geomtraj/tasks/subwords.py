"""Subwords by byte pair encoding, learned from the training text."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

SPECIAL = ("<pad>", "<unknown>", "<start>", "<end>")
PAD, UNKNOWN, START, END = range(len(SPECIAL))


class Subwords:
    """A vocabulary of characters and of frequent strings of them, and the tokens of a text in it.

    A word carries the blank before it. The most frequent pair of neighbours is merged first, as long as one occurs
    twice and the vocabulary has room; equal counts are ordered by the pairs' characters.

    Args:
        texts: The training text.
        size: Tokens at most, the special ones among them; rarer characters than fit are unknown.

    Attributes:
        symbols: The string of every token, in order.

    Source: Sennrich, Haddow, Birch 2016 (arXiv 1508.07909), section 3.2.
    """

    def __init__(self, texts: Iterable[str], size: int):
        words = Counter(word for text in texts for word in _words(text))
        characters: Counter[str] = Counter()
        for word, count in words.items():
            for character in word:
                characters[character] += count
        room = max(size - len(SPECIAL), 0)
        alphabet = sorted(sorted(characters), key=characters.__getitem__, reverse=True)[:room]
        self._rank = {pair: rank for rank, pair in enumerate(_merges(words, set(alphabet), room - len(alphabet)))}
        # Two orders of merging can spell the same string.
        self.symbols = tuple(dict.fromkeys([*SPECIAL, *sorted(alphabet), *map("".join, self._rank)]))
        self._token = {symbol: token for token, symbol in enumerate(self.symbols)}
        self._known: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """The tokens of the text."""
        return [token for word in _words(text) for token in self._encode_word(word)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, with single blanks; special tokens are left out but for the unknown one."""
        return "".join(self.symbols[token] for token in tokens if token not in (PAD, START, END)).strip()

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._known:
            parts: Sequence[str] = tuple(word)
            while len(parts) > 1:
                best = min(pairwise(parts), key=lambda pair: self._rank.get(pair, math.inf))
                if best not in self._rank:
                    break
                parts = _merged(parts, best)
            self._known[word] = [self._token.get(part, UNKNOWN) for part in parts]
        return self._known[word]


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of tokens as one tensor (rows, longest), filled up with PAD at the end."""
    tokens = torch.full((len(rows), max(map(len, rows), default=0)), PAD)
    for row, target in zip(rows, tokens, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return tokens


def trimmed(tokens: Tensor) -> Tensor:
    """Padded rows (B, T) without those last columns in which every row is padding."""
    return tokens[:, : int((tokens != PAD).sum(dim=1).max())]


def _words(text: str) -> list[str]:
    return re.findall(r" ?\w+| ?[^\w\s]+", " " + " ".join(text.split()))


def _merges(words: Counter[str], alphabet: set[str], wanted: int) -> list[tuple[str, str]]:
    """The pairs to merge, in order."""
    spelled: dict[str, Sequence[str]] = {word: tuple(word) for word in words if alphabet.issuperset(word)}
    counts: Counter[tuple[str, str]] = Counter()
    users = defaultdict(set)

    def add(word: str, sign: int) -> None:
        for pair in pairwise(spelled[word]):
            counts[pair] += sign * words[word]
            users[pair].add(word)

    for word in spelled:
        add(word, 1)
    merges: list[tuple[str, str]] = []
    while len(merges) < wanted and counts:
        most = max(counts.values())
        if most < 2:
            break
        best = max(pair for pair, count in counts.items() if count == most)
        merges.append(best)
        for word in users.pop(best):
            add(word, -1)
            spelled[word] = _merged(spelled[word], best)
            add(word, 1)
        del counts[best]
    return merges


def _merged(parts: Sequence[str], pair: tuple[str, str]) -> Sequence[str]:
    """The parts with every occurrence of the pair joined, from the left."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
