"""What every statistic, task, optimizer and figure must pass: a new one is a line in its list and nothing here."""

import dataclasses
import json

import pytest
from synthetic import groups

import geomtraj as gt
from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.reporting.data import ReportFigure, Skipped, gather
from geomtraj.reporting.figures import FIGURES
from geomtraj.reporting.style import plain_style


@pytest.mark.parametrize("name", sorted(gt.STATISTICS))
def test_a_statistic_has_a_name_a_title_and_settings_that_name_its_results(name):
    kind = gt.STATISTICS[name]
    statistic = kind()
    assert kind.name == name and kind.title and kind.__doc__
    assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
    settings = statistic.settings()
    assert json.loads(json.dumps(settings)) == settings and kind.with_settings(settings) == statistic
    with pytest.raises(InputError, match="there are|no setting|unknown"):
        statistic.changed({"no_such_setting": 1})


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_has_its_name_and_says_what_it_is(name):
    kind = tasks.REGISTRY[name]
    assert kind.name == name and issubclass(kind, tasks.Task) and kind.__doc__
    with pytest.raises(InputError, match="no_such_option"):
        tasks.make(name, no_such_option=1)


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__module__.rpartition(".")[2])
def test_a_figure_is_drawn_or_says_why_not(draw):
    whole, poor = groups(seeds=2, layers=1), groups(seeds=1, layers=1, statistics=("trace",))
    with plain_style():
        found, missing = draw(gather(whole, 2)), draw(gather(poor, 2))
    assert isinstance(found, ReportFigure) and found.name and found.title and found.caption.endswith(".")
    assert isinstance(missing, (ReportFigure, Skipped)) and (isinstance(missing, ReportFigure) or missing.reason)
