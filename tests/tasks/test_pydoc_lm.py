import pytest
import torch

from geomtraj import tasks
from geomtraj.errors import InputError

SMALL = {"layers": 1, "width": 8, "heads": 2}


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} of the tale: äöü\n" for i in range(400)), encoding="utf-8")
    return path


def test_the_default_is_a_gpt_of_about_100k_parameters_on_half_a_megabyte():
    task = tasks.make("pydoc-lm")
    model = task.model(0)
    names = [name for name, _ in model.named_parameters()]
    assert 80_000 < sum(p.numel() for p in model.parameters()) < 130_000
    assert "blocks.0.attention.qkv.weight" in names and "head.weight" in names
    assert len(task._data.tokens) > 300_000 and "a" in task.vocabulary
    assert sum(len(tokens) for tokens, _ in task.evaluation()) == 16
    losses = task.loss(model, task.batch(0, 0))
    assert losses.shape == (32, 64)
    assert losses.mean().item() == pytest.approx(torch.tensor(len(task.vocabulary)).log().item(), rel=0.02)


def test_windows_are_text_and_the_following_characters(text_file):
    task = tasks.make("pydoc-lm", **SMALL, context=10, batch_size=6, text=text_file)
    text = text_file.read_text(encoding="utf-8")
    for batch in (task.batch(0, 0), *task.evaluation()):
        for tokens, following in zip(*batch, strict=True):
            window = "".join(task.vocabulary[i] for i in [*tokens.tolist(), following[-1].item()])
            assert window in text and len(window) == 11
            assert torch.equal(tokens[1:], following[:-1])


def test_training_windows_overlap_no_evaluation_window_and_reach_all_the_rest(text_file):
    task = tasks.make("pydoc-lm", **SMALL, context=10, eval_sequences=7, text=text_file)
    length, data = 11, task._data
    seen = {i for start in data.eval_starts.tolist() for i in range(start, start + length)}
    assert len(data.eval_starts) == 7
    trained = {i for start in data.train_starts.tolist() for i in range(start, start + length)}
    assert not seen & trained and seen | trained == set(range(len(data.tokens)))


def test_attention_is_causal():
    task = tasks.make("pydoc-lm", **SMALL, context=10)
    model = task.model(0).double()
    tokens = task.batch(0, 0)[0][:1]
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 50
    difference = (model(tokens) - model(changed)).abs().sum(-1)[0]
    assert difference[:6].max() == 0 and difference[6:].min() > 0


def test_tying_shares_embedding_and_head():
    tied = tasks.make("pydoc-lm", **SMALL, tied=True).model(0)
    assert tied.head.weight is tied.embedding.weight
    assert tied.embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_bad_texts_are_told(tmp_path):
    with pytest.raises(InputError, match="no text file"):
        tasks.make("pydoc-lm", text=tmp_path / "absent.txt")
    with pytest.raises(InputError, match="cannot read"):
        tasks.make("pydoc-lm", text=tmp_path)
    (tmp_path / "latin").write_bytes("Käse ".encode("latin-1") * 200)
    with pytest.raises(InputError, match="not UTF-8 text .byte 1."):
        tasks.make("pydoc-lm", text=tmp_path / "latin")
    (tmp_path / "short").write_text("abc" * 20)
    with pytest.raises(InputError, match="60 characters, context 64 needs at least 260"):
        tasks.make("pydoc-lm", text=tmp_path / "short")
    assert len(tasks.make("pydoc-lm", text=tmp_path / "short", context=14).evaluation()[0][0]) == 1
