import dataclasses
import inspect

import pytest
import torch
from models import CASES

import geomtraj as gt
from geomtraj.errors import InputError
from geomtraj.statistics import REGISTRY, Point, Spectrum, Statistic, resolve


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
    spectrum = Spectrum(steps=3, refine=0).measure(Point(CASES["gpt"]().problem))
    assert "lambda_max has not converged" in spectrum.status
    quantity = spectrum.quantities["lambda_max"]
    assert quantity.high > quantity.value


@pytest.mark.parametrize(
    ("function", "statistic", "of_the_function_alone"),
    [
        (gt.trace, "trace", set()),
        (gt.spectrum, "spectrum", {"which"}),
        (gt.spectral_density, "spectrum", set()),
        (gt.r_med, "r_med", {"theta"}),
        (gt.diagonal, "r_med", {"theta", "max_seconds"}),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_function_and_the_statistic_of_its_name_have_the_same_defaults(function, statistic, of_the_function_alone):
    ours = {f.name: f.default for f in dataclasses.fields(REGISTRY[statistic])}
    theirs = {p.name: p.default for p in list(inspect.signature(function).parameters.values())[1:]}
    assert {name: ours.get(name) for name in theirs if name not in of_the_function_alone} == {
        name: default for name, default in theirs.items() if name not in of_the_function_alone
    }
    if function.__name__ == statistic:
        assert ours.keys() <= theirs.keys()


@dataclasses.dataclass(frozen=True)
class Settable(Statistic):
    name = "settable"
    title = "settings of every kind"

    count: int = 1
    share: float = 0.5
    most: int | None = None
    exact: bool = False
    method: str = "auto"

    def measure(self, point):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"count": 2, "share": 1, "most": 3, "exact": True, "method": "x"}, None),
        ({"most": None}, None),
        ({"count": True}, "setting settable.count is True: it must be a int, like 1"),
        ({"count": 1.5}, "must be a int"),
        ({"exact": 1}, "must be a bool"),
        ({"most": "all"}, "must be a int or None, like None"),
        ({"share": "half"}, "must be a float"),
        ({"method": 3}, "must be a str"),
        ({"counts": 3}, "unknown setting of settable 'counts'.*did you mean 'count'"),
    ],
)
def test_settings_are_checked_by_their_types(settings, sentence):
    if sentence is None:
        assert Settable.with_settings(settings).settings() == Settable().settings() | settings
        return
    with pytest.raises(InputError, match=sentence):
        Settable.with_settings(settings)


def test_settings_go_to_the_statistics_they_name():
    chosen = resolve(["trace", Spectrum(steps=3)], {"trace": {"probes": 5}, "spectrum": {"probes": 1}})
    assert chosen == [REGISTRY["trace"](probes=5), Spectrum(steps=3, probes=1)]
    for settings, sentence in (
        ({"spektrum": {}}, "unknown statistic in settings 'spektrum'.*did you mean 'spectrum'"),
        ({"r_med": {"samples": 8}}, "'r_med', which is not among the statistics to measure"),
        ({"trace": {"probe": 5}}, "did you mean 'probes'"),
        ({"trace": 5}, "write {'r_med': {'samples': 8}}"),
        ("trace", "write {'r_med': {'samples': 8}}"),
    ):
        with pytest.raises(InputError, match=sentence):
            resolve(["trace", "spectrum"], settings)


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
