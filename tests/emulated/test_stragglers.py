"""A slow link and a slow rank, planted on an emulated cluster; `make bench ARGS=stragglers` does it 20 times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import here
from tests.emulated.stragglers import planted

pytestmark = pytest.mark.emulated


@pytest.mark.slow
def test_both_are_named_and_nobody_else(tmp_path: Path) -> None:
    expected, found = planted(1, tmp_path / "out", here)
    assert sorted(found) == sorted(expected)
