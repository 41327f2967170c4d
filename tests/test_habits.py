"""Habits of the house as numbers that only fall: who finds one lower writes the lower one here."""

import ast
import importlib
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE, ANALYSES = ROOT / "geomtraj", ROOT / "analyses"
SOURCES = {path: path.read_text() for folder in (PACKAGE, ANALYSES) for path in sorted(folder.rglob("*.py"))}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}
FUNCTIONS = [
    (path, node)
    for path, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
]

CODE_LINES, MANY_LINES = 60, 10
MANY_PARAMETERS = 32
ANY, FMT_SKIP = 750, 102
MORE_DOCSTRING = {
    "geomtraj/diagonals/probing.py",
    "geomtraj/errors.py",
    "geomtraj/linalg/trace.py",
    "geomtraj/operators/ggn.py",
    "geomtraj/operators/hessian.py",
    "geomtraj/operators/hvp/base.py",
    "geomtraj/operators/hvp/finite_differences.py",
    "geomtraj/operators/hvp/forward_over_reverse.py",
    "geomtraj/seeding.py",
}
CYCLES: list[set[str]] = []
"""Sets of modules that import each other; nothing may be added."""


def named(path):
    return str(path.relative_to(ROOT))


def test_functions_are_short():
    long = {f"{named(p)}:{f.name}": n for p, f in FUNCTIONS if (n := f.end_lineno - f.lineno + 1) > CODE_LINES}
    assert len(long) <= MANY_LINES, long


def test_functions_have_few_parameters():
    def count(function):
        a = function.args
        own = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
        return len(own) - (own[:1] in (["self"], ["cls"]))

    wide = {f"{named(p)}:{f.name}": count(f) for p, f in FUNCTIONS if count(f) > 6}
    assert len(wide) <= MANY_PARAMETERS, wide


def docstring_lines(tree):
    holders = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    first = [n.body[0] for n in ast.walk(tree) if isinstance(n, holders) and n.body]
    texts = [n for n in first if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    return sum(n.end_lineno - n.lineno + 1 for n in texts if isinstance(n.value.value, str))


def code_lines(text):
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({n for t in tokens if t.type not in nothing for n in range(t.start[0], t.end[0] + 1)})


def test_modules_hold_more_code_than_docstrings():
    found = set()
    for path, text in SOURCES.items():
        words, every = docstring_lines(TREES[path]), code_lines(text)
        if words > every - words and every > words:  # a package that is nothing but its docstring says what it is
            found.add(named(path))
    assert found <= MORE_DOCSTRING


def test_types_that_say_nothing_and_lines_that_are_not_formatted_only_fall():
    anys = sum(isinstance(n, ast.Name) and n.id == "Any" for tree in TREES.values() for n in ast.walk(tree))
    assert anys <= ANY, anys
    skips = sum(text.count("# fmt: skip") for text in SOURCES.values())
    assert skips <= FMT_SKIP, skips


def imports():
    """Module -> the modules that it imports anywhere, for types alone too."""
    modules = {}
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for name, path in modules.items():
        wanted = set()
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in modules else node.module
                           for a in node.names}  # fmt: skip
            elif isinstance(node, ast.Import):
                wanted |= {a.name for a in node.names}
        found[name] = {w for w in wanted if w in modules and w != name}
    return found


def cycles(graph):
    """Sets of modules that reach each other (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(x):
        index[x] = low[x] = len(index)
        stack.append(x)
        for y in graph[x]:
            if y not in index:
                visit(y)
            if y in stack:
                low[x] = min(low[x], low[y])
        if low[x] == index[x]:
            part = set(stack[stack.index(x) :])
            del stack[stack.index(x) :]
            if len(part) > 1:
                found.append(part)

    for x in graph:
        if x not in index:
            visit(x)
    return found


def test_the_finder_of_cycles_finds_one():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_no_two_modules_import_each_other():
    assert [c for c in cycles(imports()) if c not in CYCLES] == []


def test_inner_modules_of_a_room_are_imported_by_name():
    """A module imports what it needs from where it is defined, so that the graph of imports is the true one."""
    for name, targets in imports().items():
        for target in targets:
            assert importlib.util.find_spec(target) is not None, f"{name} imports {target}"


def public(module):
    names = getattr(module, "__all__", None)
    return set(names) if names is not None else {n for n in vars(module) if not n.startswith("_")}


@pytest.mark.parametrize("path", sorted(ANALYSES.rglob("*.py")), ids=lambda p: str(p.relative_to(ANALYSES)))
def test_analyses_use_public_names_alone(path):
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("geomtraj"):
            continue
        assert node.module.count(".") <= 1, f"{node.module} is an inner room"
        known = public(importlib.import_module(node.module))
        known |= {p.stem for p in PACKAGE.iterdir() if p.name != "__pycache__"} if node.module == "geomtraj" else set()
        assert {a.name for a in node.names} <= known


def test_analyses_do_not_import_each_other():
    for name, targets in imports().items():
        top = name.split(".")[:2]
        for target in targets:
            if name.startswith("analyses.") and target.startswith("analyses."):
                assert target.split(".")[1] in (top[1], "common"), f"{name} imports {target}"


def test_no_code_reads_what_a_status_says():
    """Statuses are sentences for people; programs ask for codes (`geomtraj.status`)."""
    reading = re.compile(r"""\bin \w*\.?status\b|\bstatus\.(split|startswith|endswith|find)\(""")
    for path, text in SOURCES.items():
        for number, line in enumerate(text.splitlines(), 1):
            if reading.search(line) and named(path) not in READS_A_STATUS:
                pytest.fail(f"{named(path)}, line {number}: {line.strip()}")


READS_A_STATUS = {"geomtraj/statistics/r_med/ratio.py"}
"""Where it still is so."""


def test_the_picture_of_the_architecture_is_drawn_from_the_code():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        drawing = importlib.import_module("_architecture")
    finally:
        sys.path.pop(0)
    assert drawing.PICTURE.read_text() == drawing.picture(), "draw it again: python docs/_architecture.py"
    assert set(drawing.rooms()) <= set(drawing.WORDS), "say in docs/_architecture.py what a new room is for"


def test_the_glossary_has_the_words_of_the_statuses_and_rooms():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    glossary = text[text.index("## Words") :]
    for word in ("iterate", "block", "Interval", "status", "alignment", "strategy", "tap", "verdict"):
        assert word in glossary
