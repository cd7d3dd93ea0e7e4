"""Trainings compute what they computed before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import golden


@pytest.mark.parametrize("schedule", golden.SCHEDULES)
def test_losses_are_those_of_before(schedule: str, tmp_path: Path) -> None:
    recorded = json.loads((golden.FOLDER / "losses.json").read_text())
    assert golden.losses(schedule, tmp_path) == pytest.approx(recorded[schedule], rel=1e-12)
