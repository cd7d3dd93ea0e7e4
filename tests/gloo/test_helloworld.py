"""The bench under the conditions of Tutel's helloworld, small and over gloo: it gets one go on GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import helloworld

WORDS = ["--device", "cpu", "--ranks", "2", "--batch", "4", "--tokens", "8", "--width", "16", "--hidden", "16",
         "--steps", "14", "--repeats", "2"]  # fmt: skip


def test_rows_and_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours.json"
    assert helloworld.main([*WORDS, "--dtypes", "fp32,bf16", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    cases = [(row["dtype"], row["input_gradient"]) for row in found["rows"]]
    assert cases == [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]
    for row in found["rows"]:
        assert row["ms"] > 0 and row["samples"] == 7 and row["loss"] == row["loss"], row
        # Each choice passes two products forward, and three or four back.
        assert row["flop"] == (6 if row["input_gradient"] else 5) * 2 * 2 * 4 * 8 * 16 * 16
        assert {"exchange", "exchange back", "experts backward", "combine", "optimiser"} <= set(row["stages"])
        # Without a gradient of the input nothing goes back through the first exchange.
        assert ("exchange backward" in row["stages"]) == row["input_gradient"]
        assert ("dispatch backward" in row["stages"]) == row["input_gradient"]
    assert "all_to_all" in found["explain"]
    assert "| fp32 | yes | no |" in capsys.readouterr().out


def test_schedules_in_chunks(tmp_path: Path) -> None:
    out = tmp_path / "ours.json"
    words = ["--dtypes", "fp32", "--gradients", "no", "--schedule", "pipelined,expert_groups", "--chunks", "4",
             "--out", str(out)]  # fmt: skip
    assert helloworld.main([*WORDS, *words]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["schedule"].split(" ")[0] for row in rows] == ["pipelined", "expert_groups"]
    assert "chunks=4" in rows[0]["schedule"]
    for row in rows:
        assert "stages" not in row and row["ms"] > 0
