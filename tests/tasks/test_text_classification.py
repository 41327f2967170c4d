import pytest
import torch

from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.tasks.text_classification import pydoc_passages

SMALL = {"layers": 1, "width": 8, "heads": 2, "batch_size": 4}


@pytest.fixture
def table(tmp_path):
    """Forty texts in three classes, each text with a character of its own."""
    rows = [f'"{"abc"[i % 3]} text, number {i} {chr(0x4E00 + i)}",{"abc"[i % 3]},{i}' for i in range(40)]
    path = tmp_path / "texts.csv"
    path.write_text("\n".join(["text,label,number", *rows]), encoding="utf-8")
    return path


def make(path, **options):
    return tasks.make("text-classification", **SMALL, path=path, **options)


def test_pydoc_gives_some_seventy_classes_with_a_heavy_tail():
    task = tasks.make("text-classification")
    assert 60 < len(task.classes) < 100 and len(task.vocabulary) == 512
    sizes = torch.bincount(task._data.labels).sort().values
    assert sizes[0] <= 2 and sizes[-1] > 10 * sizes.median()
    (tokens, labels), *more = task.evaluation()
    assert len(tokens) == len(labels) == 32 and not more
    # Most subwords occur in the evaluation set: the others have no curvature in the embedding.
    assert len(tokens.unique()) > 256
    losses = task.loss(task.model(0), (tokens, labels))
    assert losses.mean().item() == pytest.approx(torch.tensor(len(task.classes)).log().item(), rel=0.05)


def test_passages_are_pydocs_and_a_paragraph_counts_once(monkeypatch):
    import pydoc_data.topics

    long = " ".join(f"word{i}" for i in range(40))
    topics = {
        "all": f"First   part.\n\nShared\npart.\n\n{long}",
        "some": "Shared part.\n  \nAnother.",
        "same": "Another.",
    }
    for text, title in pydoc_passages()[::100]:
        assert all(word in pydoc_data.topics.topics[title] for word in text.split())
    monkeypatch.setattr(pydoc_data.topics, "topics", topics)
    words = ("First part. " + long).split()
    expected = [("Another.", "same"), ("Shared part.", "some")]
    assert pydoc_passages() == expected + [(" ".join(words[i : i + 16]), "all") for i in (0, 16, 32)]


def test_training_and_evaluation_share_no_text_and_the_vocabulary_is_that_of_training(table):
    task = make(table, vocabulary=500, eval_examples=7)
    data = task._data
    train, evaluation = set(data.train.tolist()), set(data.evaluation.tolist())
    assert not train & evaluation and len(evaluation) == 7 and len(train) == 33
    known = set("".join(task.vocabulary.symbols))
    assert all((chr(0x4E00 + i) in known) == (i in train) for i in range(40))
    open_book = make(table, vocabulary=500, eval_examples=7, held_out=False)._data
    assert torch.equal(open_book.evaluation, data.evaluation) and len(open_book.train) == 40


def test_labels_are_those_of_their_texts(table):
    task = make(table, vocabulary=500)
    assert task.classes == ("a", "b", "c")
    for tokens, labels in (task.batch(0, 0), *task.evaluation()):
        for row, label in zip(tokens, labels, strict=True):
            assert task.classes[label] == task.vocabulary.decode(row.tolist())[0]


def test_every_class_stays_in_training(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("\n".join(["text,label", *(f"text {i},{max(i - 20, 0)}" for i in range(30))]))
    data = make(path)._data
    assert sorted(set(data.labels[data.train].tolist())) == list(range(10)) and len(data.evaluation) == 7


def test_equal_texts_count_once(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("\n".join(["text,label", *(f"text {i % 10},{i % 10 % 2 if i < 10 else 1}" for i in range(30))]))
    data = make(path)._data
    assert len(data.tokens) == 10 and data.labels.tolist() == [0, 1] * 5


def test_columns_are_chosen_by_name_and_the_path_holds_in_every_folder(table, monkeypatch):
    monkeypatch.chdir(table.parent)
    task = make("texts.csv", text_column="text", label_column="label")
    assert task.options["path"] == str(table)
    with pytest.raises(InputError, match="every class of .* single text"):
        make(table, label_column="number")


@pytest.mark.parametrize(
    "content, match",
    [
        (None, "no text file"),
        ("", "no column 'text' .its header: none."),
        ("Text;label\nx;y\n", "no column 'text' .its header: 'Text;label'."),
        ("text,class\nx,y\n", "no column 'label' .its header: 'text', 'class'.: name the columns"),
        ("text,label\n" + "one,a\ntwo,b\nthree,a\n", "3 different texts in 2 classes: give at least 8"),
        ("text,label\n" + "".join(f"{i},a\n" for i in range(20)), "20 different texts in 1 classes"),
        ('text,label\n"never closed,a\n', "line 1 of .* is no CSV"),
    ],
)
def test_bad_tables_are_told(tmp_path, content, match):
    path = tmp_path / "texts.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=match):
        make(path)


def test_rows_without_text_or_label_are_counted_and_left_out(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(10)) + ",a\n  ,b\ntext,\nshort\n")
    with pytest.warns(UserWarning, match="4 of 14 rows of .* empty text or label"):
        task = make(path)
    assert len(task._data.tokens) == 10 and task.classes == ("0", "1")


def test_adam_learns_to_tell_sections_apart():
    task = tasks.make("text-classification", layers=1, width=32, context=24, batch_size=64)
    model = task.model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = task.problem(model).loss()
    for step in range(120):
        optimizer.zero_grad()
        task.loss(model, task.batch(step, 0)).mean().backward()
        optimizer.step()
    assert task.problem(model).loss() < before - 1
