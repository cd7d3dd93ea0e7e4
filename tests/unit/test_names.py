"""A name means one thing in the whole repository, and a docstring is a sentence."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.unit.test_layers import modules

# Public classes that two modules define. This list may only shrink.
TWICE: set[str] = set()
# How a fragment begins ("Of a run's config."). A docstring says what is, or what is done.
FRAGMENTS = ("Of", "By", "With", "As", "From", "At", "To")


def definitions() -> dict[str, list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Every function and class of every module of ours."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {
        module: [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
        for module, path in modules().items()
    }


def test_a_public_class_name_exists_once() -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(module)
    assert {name: sorted(where) for name, where in homes.items() if len(where) > 1 and name not in TWICE} == {}
    assert {name for name in TWICE if len(homes[name]) < 2} == set(), "these are unique now: take them off the list"


def test_docstrings_are_sentences() -> None:
    fragments = [
        f"{module}:{node.lineno} {node.name}: {text.splitlines()[0]}"
        for module, nodes in definitions().items()
        for node in nodes
        if (text := ast.get_docstring(node)) and text.split()[0] in FRAGMENTS
    ]
    assert fragments == []
