"""Templates of pages: all text from users is escaped, and what a template lacks is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2

from geomtraj._version import __version__
from geomtraj.reporting.style import number


def render(template: str, filters: dict[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """The HTML text of one of the templates in this folder.

    Args:
        template: Its file name.
        filters: Filters beside `number`.
        **values: What it shows; `version` is there already.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geomtraj.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, **(filters or {}))
    html = environment.get_template(template).render(version=__version__, **values)
    return html.replace(" %", "\N{NO-BREAK SPACE}%")
