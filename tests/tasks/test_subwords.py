import random
from collections import Counter
from itertools import pairwise

import pytest
import torch

from geomtraj.tasks.subwords import PAD, SPECIAL, START, UNKNOWN, Subwords, padded, trimmed

TEXT = "low low low low low lower lower newest newest newest newest newest newest widest widest widest"


def test_merges_are_those_of_counting_every_pair_anew():
    """The oracle recounts all pairs before every merge; the class only updates the words that changed."""
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abca", k=rng.randint(1, 6))) for _ in range(300))
    words = Counter(tuple(" " + word) for word in text.split())
    symbols = sorted(set("abc "))
    for _ in range(30):
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        symbols.append("".join(best))
        changed = Counter()
        for word, count in words.items():
            joined, i = [], 0
            while i < len(word):
                joined.append(word[i] + word[i + 1] if word[i : i + 2] == best else word[i])
                i += 2 if word[i : i + 2] == best else 1
            changed[tuple(joined)] += count
        words = changed
    vocabulary = Subwords([text], len(SPECIAL) + 4 + 30)
    assert vocabulary.symbols == (*SPECIAL, *dict.fromkeys(symbols))
    for word in words:
        assert vocabulary.decode(vocabulary.encode("".join(word))) == "".join(word).strip()
        assert [vocabulary.symbols[token] for token in vocabulary.encode("".join(word))] == list(word)


def test_frequent_words_become_one_token_and_rare_characters_unknown():
    vocabulary = Subwords([TEXT], 100)
    assert len(vocabulary.encode("low")) == len(vocabulary.encode("newest widest")) - 1 == 1
    assert vocabulary.decode(vocabulary.encode("  lowest\n newer ")) == "lowest newer"
    assert vocabulary.encode("lowß").count(UNKNOWN) == 1
    few = Subwords(["aaaa bbb c"], len(SPECIAL) + 3)
    assert set(few.symbols) == {*SPECIAL, " ", "a", "b"} and UNKNOWN in few.encode("c")
    assert len(Subwords([TEXT], 12)) == 12


def test_order_of_the_texts_does_not_matter():
    parts = TEXT.split()
    assert Subwords(parts, 24).symbols == Subwords(parts[::-1], 24).symbols


def test_padding_stands_at_the_end_and_is_trimmed():
    tokens = padded([[5, 6, 7], [8]])
    assert tokens.tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert trimmed(tokens[1:]).tolist() == [[8]]
    assert trimmed(tokens).shape == (2, 3) and tokens.dtype == torch.int64


@pytest.mark.parametrize("token", [PAD, START])
def test_special_tokens_are_no_text(token):
    vocabulary = Subwords([TEXT], 24)
    assert vocabulary.decode([token, *vocabulary.encode("low")]) == "low"
    assert token not in vocabulary.encode("<pad> <start>")
