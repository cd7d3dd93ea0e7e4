"""Tests here make clusters of network namespaces; where that is not possible they are skipped, with the reason."""

from __future__ import annotations

import functools

import pytest

from commbench import fabric
from commbench.errors import EnvironmentProblem
from commbench.fabric.emulated import Emulated


@functools.cache
def _lacking() -> str:
    try:
        fabric.check(Emulated(nodes=2, link="1gbit"))
    except EnvironmentProblem as problem:
        return f"{problem} ({problem.hint})"
    return ""


@pytest.fixture(autouse=True)
def possible() -> None:
    if _lacking():
        pytest.skip(_lacking())
