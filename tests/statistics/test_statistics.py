import json

import pytest
import torch
from models import CASES

import geomtraj as gt
from geomtraj.errors import InputError
from geomtraj.statistics import REGISTRY, Point, Spectrum, Statistic, resolve


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_statistic_gives_finite_numbers_in_their_intervals_and_json(name):
    statistic = REGISTRY[name]()
    outcome = statistic.measure(Point(CASES["mlp"]().problem))
    assert statistic.name == name and statistic.title and isinstance(statistic, Statistic)
    assert outcome.quantities
    for quantity in outcome.quantities.values():
        assert quantity.low <= quantity.value <= quantity.high
    json.dumps([outcome.details, statistic.settings()])
    assert type(statistic).with_settings(statistic.settings()) == statistic


def test_loss_and_gradient_norm():
    case = CASES["cnn"]()
    found = REGISTRY["loss"]().measure(Point(case.problem)).quantities
    assert found["loss"].value == pytest.approx(float(case.flat_reference(case.problem.theta())))
    assert found["gradient_norm"].value == pytest.approx(
        float(torch.func.grad(case.flat_reference)(case.problem.theta()).norm())
    )


def test_spectrum_and_trace_against_the_dense_hessian():
    case = CASES["mlp"]()
    values = torch.linalg.eigvalsh(case.hessian())
    point = Point(case.problem)
    spectrum = Spectrum(steps=60).measure(point)
    assert spectrum.status == "ok"
    assert spectrum.quantities["lambda_max"].value == pytest.approx(float(values[-1]), rel=1e-6)
    assert spectrum.quantities["lambda_min"].value == pytest.approx(float(values[0]), rel=1e-6)
    assert sum(map(sum, spectrum.details["weights"])) == pytest.approx(1)
    trace = REGISTRY["trace"](probes=200).measure(point)
    assert trace.quantities["trace"].low < float(values.sum()) < trace.quantities["trace"].high
    assert spectrum.matvecs + trace.matvecs == point.hessian.matvecs


def test_eigenvalues_that_have_not_converged_are_said_to_have_not():
    spectrum = Spectrum(steps=3).measure(Point(CASES["gpt"]().problem))
    assert "lambda_max has not converged" in spectrum.status
    quantity = spectrum.quantities["lambda_max"]
    assert quantity.high > quantity.value


def test_names_settings_and_repeats_are_checked():
    with pytest.raises(InputError, match=r"unknown statistic 'rmed'.*'r_med'"):
        resolve(["rmed"])
    with pytest.raises(InputError, match="not int"):
        resolve([3])
    with pytest.raises(InputError, match="twice with different settings"):
        resolve(["spectrum", Spectrum(steps=3)])
    assert resolve("loss") == resolve(["loss", "loss"])
    with pytest.raises(InputError, match=r"unknown setting of spectrum 'step'.*'steps'"):
        Spectrum.with_settings({"step": 3})
    with pytest.raises(InputError, match=r"spectrum\.steps is 'many': it must be a int, like 64"):
        Spectrum.with_settings({"steps": "many"})
    assert gt.STATISTICS["spectrum"] is Spectrum
