"""Draws docs/architecture.svg from the imports in geomtraj/: `python docs/_architecture.py`."""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
GROUND = "problem and its ground floor"
WORDS = {
    "inference": "statistics over seeds: NumPy alone",
    GROUND: "L(theta), leaving nothing behind",
    "operators": "Hessian, GGN: products",
    "layers": "how parameters enter each loss",
    "linalg": "Lanczos, eigenpairs, density, trace",
    "diagonals": "diagonal with standard errors",
    "statistics": "one file for each statistic",
    "trajectory": "recorder, HDF5 iterates",
    "tasks": "built-in problems",
    "training": "the plain loop, sweeps",
    "measuring": "statistics at every iterate",
    "comparing": "same loss, seed by seed",
    "reporting": "figures, tables, pages",
    "integrations": "other people's loops",
    "cli": "the command geomtraj",
}
COLUMNS = {
    "inference": 0, "layers": 1.05, "operators": 2, GROUND: 2.7, "tasks": 3, "trajectory": 4.4, "linalg": 2.05,
    "training": 3.05, "diagonals": 1.5, "statistics": 1, "measuring": 1, "comparing": 1, "reporting": 1, "cli": 3.05,
    "integrations": 4.4,
}  # fmt: skip
"""Where each room stands from left to right, so that no arrow runs through another room; its floor is computed."""
WIDTH, HEIGHT, GAP, RISE = 206, 46, 24, 46


def rooms() -> dict[str, set[str]]:
    """Room -> the rooms that it imports: folders, the command line, and the modules below `problem` as one room.

    Other modules at the top level, which tie rooms together, are not drawn.
    """
    package = ROOT / "geomtraj"
    uses: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        first = path.relative_to(package).parts[0].removesuffix(".py")
        names = {name.split(".")[1] for name in _imported(path) if name.startswith("geomtraj.")}
        uses.setdefault(first, set()).update(names - {first})
    folders = {p.name for p in package.iterdir() if (p / "__init__.py").exists()}
    ground = {"problem"}
    while more := {used for module in ground for used in uses[module]} - ground:
        ground |= more
    drawn = {name: name for name in folders | {"cli"}} | dict.fromkeys(ground - folders, GROUND)
    found: dict[str, set[str]] = {room: set() for room in drawn.values()}
    for name, room in drawn.items():
        found[room] |= {drawn[used] for used in uses[name] if used in drawn} - {room}
    return found


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "geomtraj":
            found |= {f"geomtraj.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def floors(uses: dict[str, set[str]]) -> dict[str, int]:
    """Room -> its floor: one above the highest room that it imports."""
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((floor(used) for used in uses.get(room, ())), default=-1)
        return found[room]

    for room in sorted(uses):
        floor(room)
    return found


def arrows(uses: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no longer way implies."""

    def reached(room: str) -> set[str]:
        return set().union(*(({used} | reached(used)) for used in uses.get(room, ())))

    return sorted(
        (room, used)
        for room, direct in uses.items()
        for used in direct
        if not any(used in reached(other) for other in direct - {used})
    )


def picture() -> str:
    """The SVG text."""
    uses = rooms()
    level = floors(uses)
    height = (max(level.values()) + 1) * (HEIGHT + RISE) + GAP
    width = int((max(COLUMNS.get(room, 4) for room in level) + 1) * (WIDTH + GAP)) + GAP
    place = {
        room: (GAP + COLUMNS.get(room, 4) * (WIDTH + GAP), height - (n + 1) * (HEIGHT + RISE) + RISE - GAP)
        for room, n in level.items()
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#777777"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for room, used in arrows(uses):
        (x, y), (u, v) = place[room], place[used]
        lines.append(
            f'<line x1="{x + WIDTH / 2:g}" y1="{y + HEIGHT:g}" x2="{u + WIDTH / 2:g}" y2="{v:g}" stroke="#777777" '
            'marker-end="url(#a)"/>'
        )
    for room, (x, y) in sorted(place.items()):
        middle = x + WIDTH / 2
        lines += [
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#eef4fb" stroke="#33658a"/>',
            f'<text x="{middle:g}" y="{y + 19:g}" text-anchor="middle" font-size="13">{escape(room)}</text>',
            f'<text x="{middle:g}" y="{y + 36:g}" text-anchor="middle" font-size="10" fill="#444444">'
            f"{escape(WORDS.get(room, ''))}</text>",
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture())
