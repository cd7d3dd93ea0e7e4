"""CONTRIBUTING.md tells the truth: its examples work as they are printed, and what it names exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from commbench.algorithms.base import Algorithm
from commbench.export.source import ExportSource
from commbench.profile import Profile, Scope
from tests.conftest import REPOSITORY
from tests.unit.algorithms.test_algorithms import run_and_compare, spec_of

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text()


@pytest.fixture
def examples(tmp_path: Path) -> list[ModuleType]:
    """The blocks of Python, each as a module."""
    modules = []
    for number, program in enumerate(re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)):
        path = tmp_path / f"example_{number}.py"
        path.write_text(program)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    return modules


def test_the_algorithm_sends_what_it_declares(examples: list[ModuleType]) -> None:
    algorithm: Algorithm = examples[0].Xor()
    for nodes, per_node in [(1, 2), (2, 2), (2, 4)]:
        run_and_compare(algorithm, spec_of(algorithm, nodes, per_node))
    assert "3 ranks" in algorithm.unsupported(spec_of(algorithm, 1, 3))


def test_the_exporter_writes_settings(examples: list[ModuleType]) -> None:
    scope = Scope(id="a", transport="nccl", nodes=1, ranks_per_node=8, env={"NCCL_PROTO": "Simple"})
    text = examples[1].write(ExportSource(Profile(scopes=[scope], choices=[]), Path("p.json"))).text
    assert "\nNCCL_PROTO=Simple\n" in text
