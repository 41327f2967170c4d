import gettext
import re
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.tasks import translation
from geomtraj.tasks.subwords import END, PAD, START
from geomtraj.tasks.translation import django_pairs, read_messages

SMALL = {"layers": 1, "width": 8, "heads": 2, "batch_size": 4}


def make(path, **options):
    return tasks.make("translation", **SMALL, path=path, **options)


@pytest.fixture
def pairs_file(tmp_path):
    """Forty pairs; each side has a character of its own in every pair."""
    lines = [f"read {i} {chr(0x4E00 + i)}\tlies {i} {chr(0x5E00 + i)}\tsource {i}" for i in range(40)]
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def mo_file(path, messages, order):
    """A compiled message file written by hand."""
    sources, targets = zip(*sorted(messages.items()), strict=True)
    start, table, strings = 28 + 16 * len(messages), b"", b""
    for text in (*sources, *targets):
        table += struct.pack(f"{order}2I", len(text.encode()), start + len(strings))
        strings += text.encode() + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
    path.write_bytes(head + table + strings)


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_are_read_without_contexts_and_plurals(tmp_path, order):
    messages = {
        "": "Content-Type: text/plain; charset=UTF-8\n",
        "a  multi\nline": "eine Zeile",
        "verb\x04May": "dürfen",
        "%d cat\0%d cats": "%d Katze\0%d Katzen",
        "no translation": "",
    }
    mo_file(tmp_path / "x.mo", messages, order)
    with open(tmp_path / "x.mo", "rb") as file:  # the standard library reads the same file
        assert gettext.GNUTranslations(file).pgettext("verb", "May") == "dürfen"
    found = dict(read_messages(tmp_path / "x.mo"))
    assert found == {"a multi line": "eine Zeile", "May": "dürfen", "%d cat": "%d Katze"}


def test_djangos_pairs_are_aligned():
    pairs = django_pairs("de")
    assert 700 < len(pairs) < 1500
    assert dict(pairs)["German"] == "Deutsch"
    file = Path(find_spec("django").origin).parent / "conf/locale/de/LC_MESSAGES/django.mo"
    with open(file, "rb") as stream:
        oracle = gettext.GNUTranslations(stream)
    found = list(read_messages(file))
    agree = sum(oracle.gettext(source) == target for source, target in found)
    assert agree > 0.8 * len(found)  # the others have a context, a plural or line breaks


def test_the_default_is_an_encoder_and_a_decoder_of_about_170k_parameters():
    task = tasks.make("translation")
    model = task.model(0)
    names = [name for name, _ in model.named_parameters()]
    assert 140_000 < sum(p.numel() for p in model.parameters()) < 200_000
    assert "encoder.blocks.0.attention.key.weight" in names and "blocks.1.cross.query.weight" in names
    assert len(task._data.train) > 500 and 48 < len(task._data.evaluation) <= 64
    for side, vocabulary in enumerate(task.vocabularies):
        used = torch.cat([batch[side].flatten() for batch in task.evaluation()]).unique()
        # Most subwords occur in the evaluation set: the others have no curvature in the embedding.
        assert len(vocabulary) == 192 and len(used) > 96
    losses, weights = task.loss(model, task.batch(0, 0))
    assert ((losses * weights).sum() / weights.sum()).item() == pytest.approx(
        torch.tensor(192.0).log().item(), rel=0.05
    )


def test_batches_hold_pairs_and_following_tokens(pairs_file):
    task = make(pairs_file, vocabulary=500)
    source_words, target_words = task.vocabularies
    for source, target, following in (task.batch(0, 0), *task.evaluation()):
        assert target.shape == following.shape and torch.equal(target[:, 1:], following[:, :-1])
        assert (target[:, 0] == START).all() and ((following == END).sum(1) == 1).all()
        weights = task.loss(task.model(0), (source, target, following))[1]
        for row in range(len(source)):
            read, written = source_words.decode(source[row].tolist()), target_words.decode(following[row].tolist())
            assert re.search(r"\d+", read).group() == re.search(r"\d+", written).group()
            assert weights[row].sum() == (following[row] == END).nonzero().item() + 1
            assert ((following[row] != PAD) == weights[row].bool()).all()


def test_training_and_evaluation_share_no_pair_and_the_vocabularies_are_those_of_training(pairs_file):
    task = make(pairs_file, vocabulary=500, eval_pairs=7)
    train, evaluation = set(task._data.train.tolist()), set(task._data.evaluation.tolist())
    assert not train & evaluation and len(evaluation) == 7 and len(train) == 33
    for first, vocabulary in zip((0x4E00, 0x5E00), task.vocabularies, strict=True):
        known = set("".join(vocabulary.symbols))
        assert all((chr(first + i) in known) == (i in train) for i in range(40))
    open_book = make(pairs_file, vocabulary=500, eval_pairs=7, held_out=False)._data
    assert torch.equal(open_book.evaluation, task._data.evaluation) and len(open_book.train) == 40


def test_the_first_of_equal_sources_counts_and_long_pairs_are_left_out(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = [f"word {i}\tWort {i}" for i in range(12)] + ["Word 3\tanders"] * 5 + ["x " * 90 + "\ty"]
    path.write_text("\n".join(lines))
    task = make(path, context=40, vocabulary=40)
    data = task._data
    assert len(data.source) == 13 and len(data.train) + len(data.evaluation) == 12
    texts = [task.vocabularies[1].decode(row.tolist()) for row in data.target]
    assert "anders" not in texts and len(set(texts)) == 13
    for source, target, _ in (task.batch(0, 0), *task.evaluation()):
        assert source.shape[1] <= 40 and target.shape[1] <= 40


def test_columns_are_chosen_by_number(pairs_file, monkeypatch):
    monkeypatch.chdir(pairs_file.parent)
    task = make("pairs.tsv", source_column=2, target_column=3, vocabulary=500)
    assert task.options["path"] == str(pairs_file)
    read = task.vocabularies[0].decode(task._data.source[5].tolist())
    written = task.vocabularies[1].decode(task._data.target[5].tolist())
    assert read.startswith("lies 5") and written == "source 5"


@pytest.mark.parametrize(
    "content, match",
    [
        (None, "no text file"),
        ("one\teins\ntwo;zwei\n", "line 2 of .* has no column 2 .1 with tabs.*another target_column"),
        ("one\teins\n" * 50, "gives 1 different pairs"),
        ("", "gives 0 different pairs"),
        ("".join(f"{i} {'x y ' * 50}\t{i}\n" for i in range(20)), "20 different pairs, 0 of them within context 40"),
    ],
)
def test_bad_files_are_told(tmp_path, content, match):
    path = tmp_path / "pairs.tsv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=match):
        make(path)


def test_pairs_with_an_empty_side_are_counted_and_left_out(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"word {i}\tWort {i}\n" for i in range(12)) + "\n\tleer\nempty\t\n")
    with pytest.warns(UserWarning, match="2 of 14 rows of .* empty source or target"):
        task = make(path)
    assert len(task._data.source) == 12


def test_an_unknown_language_and_a_missing_django_are_told(monkeypatch):
    with pytest.raises(InputError, match="unknown language of Django 'dee'.*did you mean 'de'"):
        tasks.make("translation", language="dee")
    monkeypatch.setattr(translation, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'geomtraj\[translation\]'"):
        tasks.make("translation")
    assert "django" not in sys.modules  # its files are read, its code is not run


def test_adam_learns_to_translate():
    task = tasks.make("translation", layers=1, width=32, context=32)
    model = task.model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = task.problem(model).loss()
    for step in range(80):
        optimizer.zero_grad()
        losses, weights = task.loss(model, task.batch(step, 0))
        ((losses * weights).sum() / weights.sum()).backward()
        optimizer.step()
    assert task.problem(model).loss() < before - 1.5
