"""Trainings compute what they computed before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import goldens


@pytest.mark.parametrize("schedule", goldens.SCHEDULES)
def test_losses_are_those_of_before(schedule: str, tmp_path: Path) -> None:
    recorded = json.loads((goldens.FOLDER / "losses.json").read_text())
    assert goldens.losses(schedule, tmp_path) == pytest.approx(recorded[schedule], rel=1e-12)
