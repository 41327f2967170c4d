from types import SimpleNamespace

import pytest
import torch
from pretended_card import CARD, CPU, OnCard, PretendedCard
from spectra import SPECTRA, both_dtypes, matrix, operator, tolerance

from geomtraj.linalg.density import spectral_density
from geomtraj.linalg.eigen import eigsh
from geomtraj.linalg.memory import plan
from geomtraj.linalg.spectrum import spectrum
from geomtraj.linalg.trace import trace
from geomtraj.operators.matrix import MatrixOperator

W = SPECTRA["outliers at both ends"]


def free(monkeypatch, size, itemsize=8, **vectors):
    """Half of the free memory holds so many vectors on each device."""
    monkeypatch.setattr(
        "geomtraj.linalg.memory.available_bytes", lambda device: 2 * vectors[device.type] * size * itemsize
    )


@pytest.mark.parametrize(
    ("cuda", "cpu", "steps", "together", "device", "remark"),
    [
        (48, 0, 10, 4, CARD, ""),
        (47, 1000, 10, 3, CARD, ""),
        (12, 1000, 10, 1, CARD, ""),
        (11, 48, 10, 4, CPU, "kept on the CPU"),
        (11, 25, 10, 2, CPU, "kept on the CPU"),
        (11, 11, 9, 1, CPU, "only 9 of 10 Lanczos steps"),
        (0, 0, 1, 1, CPU, "only 1 of 10 Lanczos steps"),
    ],
)
def test_bases_lie_on_the_card_then_in_turn_then_on_the_cpu_then_shorter(
    monkeypatch, cuda, cpu, steps, together, device, remark
):
    free(monkeypatch, 1000, cuda=cuda, cpu=cpu)
    H = SimpleNamespace(shape=(1000, 1000), dtype=torch.float64, device=CARD)
    room = plan(H, 10, 4)
    assert (room.steps, room.together, room.device) == (steps, together, device)
    assert remark in room.remark and bool(remark) == bool(room.remark)


def test_on_the_cpu_there_is_nowhere_else_to_go(monkeypatch):
    free(monkeypatch, 1000, cpu=11)
    room = plan(SimpleNamespace(shape=(1000, 1000), dtype=torch.float64, device=CPU), 10, 4)
    assert (room.steps, room.remark[:17]) == (9, "only 9 of 10 Lanc")


@both_dtypes
def test_bases_on_the_cpu_give_the_same_spectrum(monkeypatch, dtype):
    expected = spectrum(operator(W, dtype=dtype), steps=30, probes=3, k=7, which="LM")
    free(monkeypatch, len(W), dtype.itemsize, cuda=31, cpu=1000)
    with PretendedCard() as card:
        H = MatrixOperator(matrix(W, dtype=dtype).to("cuda"))
        card.copies = {"to": 0, "from": 0}
        found = spectrum(H, steps=30, probes=3, k=7, which="LM")
        assert isinstance(found.eigenpairs.vectors, OnCard)
        # Each step's vectors go to the card and the products come back.
        assert min(card.copies.values()) >= 30 * 3 * len(W)
    slack = tolerance(dtype) * 20
    assert "kept on the CPU" in found.status
    assert "kept on the CPU" in found.density.status
    assert found.eigenpairs.status == "ok"
    assert (found.density.nodes - expected.density.nodes).abs().max() < slack
    assert (found.eigenpairs.values - expected.eigenpairs.values).abs().max() < slack


def test_bases_on_the_card_stay_there(monkeypatch):
    expected = spectral_density(operator(W), steps=30, probes=3)
    free(monkeypatch, len(W), cuda=1000, cpu=0)
    with PretendedCard() as card:
        H = MatrixOperator(matrix(W).to("cuda"))
        card.copies, card.waits = {"to": 0, "from": 0}, 0
        found = spectral_density(H, steps=30, probes=3)
        # The starts go there; the coefficients of the recurrence come back. One look, and one wait for each of those.
        assert card.copies["to"] == 3 * len(W)
        assert card.copies["from"] < 30 * 30
        assert card.waits < 10
    assert found.status == "ok"
    assert (found.nodes - expected.nodes).abs().max() < tolerance(torch.float64) * 20


def test_eigenpairs_and_trace_on_the_card():
    with PretendedCard():
        H = MatrixOperator(matrix(W).to("cuda"))
        pairs, estimate = eigsh(H, 7, "LM", tol=1e-6), trace(H, probes=8)
        assert isinstance(pairs.vectors, OnCard)
    assert (pairs.values - eigsh(operator(W), 7, "LM", tol=1e-6).values).abs().max() < 1e-9
    assert estimate.value == pytest.approx(trace(operator(W), probes=8).value)
