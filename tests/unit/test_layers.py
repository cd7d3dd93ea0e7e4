"""A package imports from lower floors only, and no two files import each other.

Lazy, type-only and relative imports count, and so do the `__init__` files that an import runs.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# From the ground up. A folder of commbench stands on one floor and imports from those below; `vocabulary` is the top
# level of commbench, which all may import.
FLOORS = (
    "vocabulary commbench_kernels",
    "processes payloads",
    "machine collectives fabric formats",
    "binding transports",
    "algorithms launch",
    "measure profile analysis cost_model doctor record",
    "communicators export output",
    "backend",
    "sweep",
    "ab",
    "tune train check",
    "strategy",
    "plots moe_ref find",
    "report",
    "commands",
    "cli",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
VOCABULARY = {
    "console", "data", "emulated", "errors", "files", "layout", "links", "rank_info", "records", "run_folder",
    "serialise", "spec", "stats", "units", "variables",
}  # fmt: skip
FACE = {"__init__", "__main__", "cli"}
ALIASES = {"worker"}  # names that job scripts of earlier versions give
PACKAGES = {"commbench": "commbench", "moe_ref": "moe_ref", "commbench_kernels": "kernels/commbench_kernels"}
# The public face of commbench loads what it hands on when it is called.
MAY_REACH_UP = {"commbench", "commbench.worker", "commbench.__main__"}


def modules(root: Path = REPOSITORY) -> dict[str, Path]:
    """Every module of ours by its dotted name; a package's is that of its `__init__`."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """The folder on a floor that a module is in."""
    package, *inner = module.split(".")
    if package != "commbench":
        return package
    if not inner or inner[0] in VOCABULARY | ALIASES | {"__main__"}:
        return "vocabulary"
    return inner[0]


def imports(module: str, known: dict[str, Path]) -> set[str]:
    """The modules of ours that one imports, wherever in its text, and the packages that this runs."""
    path = known[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                start = ".".join([*above, *([node.module] if node.module else [])])
            found |= {full if (full := f"{start}.{alias.name}") in known else start for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    found |= {above for name in set(found) for above in packages_of(name)}
    # A module's own packages run before it.
    return (found & known.keys()) - {module, *packages_of(module)}


def packages_of(module: str) -> Iterator[str]:
    """`a.b` and `a` for `a.b.c`."""
    while module := module.rpartition(".")[0]:
        yield module


def upward(known: dict[str, Path]) -> list[str]:
    return [
        f"{module} -> {target}"
        for module in known
        for target in sorted(imports(module, known))
        if module not in MAY_REACH_UP and room(target) != room(module) and FLOOR[room(target)] >= FLOOR[room(module)]
    ]


def circle(known: dict[str, Path]) -> list[str]:
    """The modules of a circle of imports, in order; none if there is none."""
    graph = {module: imports(module, known) - MAY_REACH_UP for module in known if module not in MAY_REACH_UP}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [str(module) for module in error.args[1]]
    return []


def test_imports_go_down() -> None:
    assert upward(modules()) == []


def test_no_circle_of_files() -> None:
    assert circle(modules()) == []


def test_every_folder_stands_on_a_floor() -> None:
    """A folder that no floor knows would count as vocabulary, which all may import."""
    folders = {path.name for path in (REPOSITORY / "commbench").iterdir() if any(path.glob("*.py"))}
    others = {"vocabulary", "cli", *PACKAGES.keys() - {"commbench"}}
    assert folders == FLOOR.keys() - others


def test_the_top_level_is_the_vocabulary_alone() -> None:
    assert {path.stem for path in (REPOSITORY / "commbench").glob("*.py")} == VOCABULARY | FACE | ALIASES
    assert len(VOCABULARY) == 15


def plant(root: Path, files: dict[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(root).parents:
            if folder.parts:
                (root / folder / "__init__.py").touch()
    return modules(root)


@pytest.mark.parametrize(
    "text",
    [
        "from commbench.sweep import plan",
        "import commbench.sweep.plan",
        "from ..sweep.plan import expand",
        "def late():\n    from commbench.sweep.plan import expand",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from commbench.sweep.plan import expand",
    ],
)
def test_an_import_from_a_higher_floor_is_seen(text: str, tmp_path: Path) -> None:
    known = plant(tmp_path, {"commbench/machine/gpus.py": text, "commbench/sweep/plan.py": ""})
    assert "commbench.machine.gpus -> commbench.sweep.plan" in upward(known)


@pytest.mark.parametrize(
    "files",
    [
        {"commbench/tune/a.py": "from commbench.tune import b", "commbench/tune/b.py": "def f():\n    from . import a"},
        {"commbench/tune/a.py": "import commbench.tune.b", "commbench/tune/b.py": "import commbench.tune.a"},
        # The circle runs through a package's own file.
        {"commbench/tune/__init__.py": "from commbench.train import a",
         "commbench/train/a.py": "import commbench.tune.b", "commbench/tune/b.py": ""},
    ],
)  # fmt: skip
def test_a_circle_is_seen(files: dict[str, str], tmp_path: Path) -> None:
    assert circle(plant(tmp_path, files))
