"""Walking through autograd's graphs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any


def nodes_of(*start: Any, until: Collection[Any] = ()) -> Iterator[Any]:
    """The nodes from which these follow, themselves included, each once; not beyond those of `until`."""
    nodes, seen = list(start), set(until)
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            nodes += [following for following, _ in node.next_functions]
