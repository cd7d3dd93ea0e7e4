"""8 seeded kills on the scripted transport: 0 lost, 0 twice, 0 processes left. `make bench` adds 40, gloo and MPI."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import first
from tests.support.kill_and_resume import kill_and_resume


@pytest.mark.parametrize("seeds", first(2, [range(4), range(4, 8), range(8, 12), range(12, 16)]), ids=str)
def test_kill_at_a_random_moment_then_resume(tmp_path: Path, seeds: range) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"pace_us": 1000}))
    words = ["quick", "transport=scripted", f"script={script}", "launches=2", "iters=6", "-e", "32K", "-f", "8"]
    with ThreadPoolExecutor(2) as pool:
        told = list(
            pool.map(
                lambda seed: kill_and_resume(
                    seed, tmp_path / f"kill-{seed:03d}", words, longest_s=2.4, fork=seed % 4 > 0
                ),
                seeds,
            )
        )
    assert len(told) == len(seeds)
    assert any("measurements were there" in line for line in told), told
