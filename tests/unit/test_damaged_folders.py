"""Run folders that are damaged: no command ends in a traceback, and no flipped bit is read as if it were none."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from commbench.sweep import runner
from tests.bench import damage

COUNT = 30


def test_no_damage_ends_in_a_traceback_or_is_read_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = damage.sweep(tmp_path, "made", "launches=1", "iters=6", "sizes.min=1K", "sizes.max=1K")
    monkeypatch.setattr(runner.Sweep, "run", runner.Sweep.finish_skipped)  # a resume measures nothing here
    old = damage.without_checksums(made, "old")
    (tmp_path / "room").mkdir()
    sys.addaudithook(damage.hear)
    chance = random.Random(18)
    for number in range(COUNT):
        target = (made, old)[number % 2]
        kind = "flip" if number % 4 == 0 else damage.KINDS[number // 2 % len(damage.KINDS)]  # most flips with checksums
        file = "measurements.jsonl" if number % 4 == 0 else chance.choice(sorted(target.files))  # it is all numbers
        command = chance.choice([one for one in target.files[file] if not one.startswith("plot")])  # which takes long
        outcome = damage.run(target, file, kind, command, chance, tmp_path / "room")
        assert outcome.code is not None, outcome.told
        assert not outcome.silent or not target.sealed, outcome
