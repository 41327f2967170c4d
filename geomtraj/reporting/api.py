"""What `report` does: figures, tables and one HTML page from stored results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from geomtraj.comparing.pairing import check_groups
from geomtraj.errors import InputError
from geomtraj.measuring.results import Results
from geomtraj.reporting import every_label, runs
from geomtraj.reporting.figures import FIGURES
from geomtraj.reporting.files import check_writable, write, write_drawing
from geomtraj.reporting.material import Drawing, LeftOut, Material, gather, listed
from geomtraj.reporting.page import contrast_file, page
from geomtraj.reporting.style import plain_style


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
    check_writable(path)

    assets = path.with_name(f"{path.stem}_files")  # so that two pages in one folder keep their own
    material = gather(checked, levels)
    drawings: list[tuple[Drawing, bytes]] = []
    left_out = []
    with plain_style():
        draws: list[Callable[[Material], Drawing | LeftOut]] = [*FIGURES]
        draws += [functools.partial(every_label.draw, statistic=name) for name in every_label.others(material)]
        for draw in draws:
            drawing = draw(material)
            if isinstance(drawing, LeftOut):
                left_out.append(drawing.reason)
                continue
            drawings.append((drawing, write_drawing(drawing, assets / "figures")))
    tables = assets / "tables"
    for (statistic, at), table in material.tables.items():
        write(tables / contrast_file(statistic, at), table.csv_text().encode())
    write(tables / "measurements.csv", runs.measurements_csv(material).encode())
    write(tables / "runs.csv", runs.runs_csv(material).encode())
    heading = title or f"Terrain of {listed(checked)}"
    write(path, page(material, drawings, left_out, heading, quote(assets.name)).encode())
    return path
