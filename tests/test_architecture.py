"""Imports go one way, as CONTRIBUTING.md says."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import geomtraj

PACKAGE = Path(__file__).parent.parent / "geomtraj"
FLOORS = [
    {"inference"},
    {
        "_version",
        "composed",
        "display",
        "distributed",
        "errors",
        "failures",
        "graphs",
        "hashed_signs",
        "layout",
        "memory",
        "microbatches",
        "seeding",
        "slicing",
        "status",
        "trees",
    },
    {"spreadsheets"},
    {"parameter_names", "plugins"},
    {"isolation"},
    {"inputs", "losses"},
    {"objective"},
    {"determinism"},
    {"blocks"},
    {"splitting"},
    {"recognised"},
    {"attention", "fingerprint"},
    {"preparation"},
    {"problem"},
    {"sampling"},
    {"operators"},
    {"linalg"},
    {"curvature"},
    {"layers"},
    {"diagonals"},
    {"statistics"},
    {"trajectory"},
    {"integrations"},
    {"tasks"},
    {"training"},
    {"updates"},
    {"registering"},
    {"measuring"},
    {"comparing"},
    {"reporting"},
    {"demo", "doctor"},
    {"overview"},
    {"cli", "cli_options", "cli_runs"},
    {"__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
APART = {
    "trajectory": {"problem", "operators", "linalg", "layers", "diagonals", "statistics"},
    "measuring": {"tasks", "training"},
}


# Modules that a function of the same name hides from `import geomtraj.a.b as x`; the list only falls.
HIDDEN = {"geomtraj.linalg.spectrum", "geomtraj.linalg.trace", "geomtraj.statistics.r_med"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "geomtraj":
                yield from (f"geomtraj.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here = room(path)
    assert here in FLOOR, f"{here} has no floor: add it here and to CONTRIBUTING.md"
    for module in imported(path):
        top, *rest = module.split(".")
        if top == "geomtraj" and rest:
            assert FLOOR[rest[0]] <= FLOOR[here], f"{path} imports {module} from above"
            assert rest[0] not in APART.get(here, ()), f"{path} imports {module}"
        if top == "matplotlib":
            assert here == "reporting"
        assert top != "h5py", f"{path}: files are read and written without the HDF5 library, which may crash"


def test_statistics_over_seeds_are_functions_of_arrays():
    for path in (PACKAGE / "inference").glob("*.py"):
        for module in imported(path):
            top = module.split(".")[0]
            assert top not in ("torch", "matplotlib", "h5py")
            assert top != "geomtraj" or module.startswith("geomtraj.inference"), f"{path} imports {module}"


def test_algorithms_see_only_the_operators_contract():
    for path in (PACKAGE / "linalg").glob("*.py"):
        rooms = {m for m in imported(path) if m.startswith("geomtraj.operators")}
        assert rooms <= {"geomtraj.operators.base"}, path


def test_no_function_hides_a_package():
    names = [m.name for m in pkgutil.walk_packages(geomtraj.__path__, "geomtraj.") if not m.name.endswith("__main__")]
    names = [n for n in names if not n.startswith("geomtraj.integrations.")]  # need packages of their own
    modules = {name: importlib.import_module(name) for name in names}
    modules["geomtraj"] = geomtraj
    hidden = {n for n in names if getattr(modules[n.rpartition(".")[0]], n.rpartition(".")[2]) is not modules[n]}
    assert hidden <= HIDDEN
