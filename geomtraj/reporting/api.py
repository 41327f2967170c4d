"""What `report` does: figures, tables and one HTML page from stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

from geomtraj.comparing.alignment import check_groups
from geomtraj.errors import InputError
from geomtraj.measuring.results import Results
from geomtraj.reporting import every_label, runs
from geomtraj.reporting.data import gather, listed
from geomtraj.reporting.figures import FIGURES
from geomtraj.reporting.files import check_writable
from geomtraj.reporting.page import contrast_file, page
from geomtraj.reporting.pipeline import Draw, Drawn, write_page


def write_report(groups: Mapping[str, Sequence[Results]], path: str | Path, title: str | None, levels: int) -> Path:
    """The work of `geomtraj.reporting.report`."""
    checked = check_groups(groups)
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise InputError(f"levels is {levels!r}: it must be a whole number, 1 or more.")
    if not isinstance(path, (str, Path)):
        raise InputError(f"path must be the name of a file such as 'report.html', not {type(path).__name__}.")
    if not any(len(r) for group in checked.values() for r in group):
        raise InputError("the results hold no measurement at all: measure the trajectories first, with gt.measure.")
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the file of the page, such as {path / 'report.html'}.")
    check_writable(path)  # before minutes are spent
    data = gather(checked, levels)
    assets = path.with_name(f"{path.stem}_files")  # so that two pages in one folder keep their own
    files = {f"tables/{contrast_file(*key)}": table.csv_text() for key, table in data.tables.items()}
    files |= {"tables/measurements.csv": runs.measurements_csv(data), "tables/runs.csv": runs.runs_csv(data)}
    heading = title or f"Terrain of {listed(checked)}"
    others = every_label.others(data)
    draws: list[Draw] = [
        *(partial(draw, data) for draw in FIGURES),
        *(partial(every_label.draw, data, statistic=name) for name in others),
    ]

    def html(figures: list[Drawn], reasons: list[str]) -> str:
        return page(data, figures, reasons, heading, quote(assets.name))

    return write_page(path, draws, files, html, assets)
