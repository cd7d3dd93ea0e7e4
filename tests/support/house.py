"""Counts of the house: `python -m tests.support.house [ROOT]`, of this checkout or of another one.

Modules at the top level, rooms and floors, arrows between rooms and between files, circles of files, class names that
mean several things, docstrings that are fragments.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections import defaultdict
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.unit.test_layers import imports, modules
from tests.unit.test_names import FRAGMENTS


def room(module: str) -> str:
    """The folder of a module, or the module itself where it lies at the top of commbench."""
    package, *inner = module.split(".")
    return ".".join([package, *inner[:1]]) if package == "commbench" else package


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of files that import each other (Tarjan 1972), largest first."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        path.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in path:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = path[path.index(node) :]
            del path[path.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found, key=len, reverse=True)


def floors(below: dict[str, set[str]]) -> int:
    """How many rooms the longest way down passes; 0 where some import each other."""
    try:
        order = list(graphlib.TopologicalSorter(below).static_order())
    except graphlib.CycleError:
        return 0
    height: dict[str, int] = {}
    for one in order:
        height[one] = 1 + max((height[other] for other in below.get(one, ())), default=0)
    return max(height.values())


def count(root: Path) -> list[str]:
    """The lines that are printed."""
    known = modules(root)
    graph = {module: imports(module, known) for module in known}
    below: dict[str, set[str]] = {room(module): set() for module in known}
    for module, targets in graph.items():
        below[room(module)] |= {room(target) for target in targets} - {room(module)}
    classes: dict[str, set[str]] = defaultdict(set)
    fragments = 0
    for module, path in known.items():
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].add(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                fragments += text.split()[0] in FRAGMENTS
    twice = sorted(name for name, homes in classes.items() if len(homes) > 1)
    return [
        f"modules: {len(known)}, at the top of commbench: {len(list((root / 'commbench').glob('*.py')))}",
        f"rooms: {len(below)}, floors: {floors(below) or 'none, as rooms import each other'}",
        f"arrows between rooms: {sum(map(len, below.values()))}, between files: {sum(map(len, graph.values()))}",
        f"circles of files: {[len(members) for members in circles(graph)] or 'none'}",
        f"circles of rooms: {[len(members) for members in circles(below)] or 'none'}",
        f"public class names of several meanings: {len(twice)} {' '.join(twice)}",
        f"docstrings that are fragments: {fragments}",
    ]


if __name__ == "__main__":
    print(*count(Path(sys.argv[1]) if sys.argv[1:] else REPOSITORY), sep="\n")  # noqa: T201
