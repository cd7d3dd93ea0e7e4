"""What a training leaves beside its metrics: the step breakdown, plots, and TensorBoard's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.conftest import here, only_run
from tests.gloo.test_train import WORDS


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_goes_on_tells_each_step_once(tmp_path: Path) -> None:
    """Six steps with checkpoints of 3 and 6; the last one is lost, as if the run had been killed."""
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = (*WORDS, "steps=6", "save_every=3", "ranks_per_node=2", "tensorboard=true", "--format", "json")
    result = here(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "results")
    assert [line["profiled"] for line in lines_of(run / "metrics.jsonl")] == [False, False, True, True, True, False]
    found = lines_of(run / "breakdown.jsonl")
    assert [line["step"] for line in found] == [4, 5] and not (run / "plots").exists()
    for line in found:
        parts = line["parts"]
        assert line["rank"] == 0 and line["device"] == "cpu" and parts["communication"] == parts["idle"] == 0
        assert min(parts[name] for name in ("attention", "ffn", "gate", "a2a", "experts", "gradients", "optimiser")) > 0
        assert sum(parts.values()) == pytest.approx(line["step_us"])

    shutil.rmtree(run / "checkpoints" / "step-00000006")
    result = here("train", "--resume", "results/latest", "steps=9", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in lines_of(run / "metrics.jsonl")] == list(range(1, 10))
    assert [line["step"] for line in lines_of(run / "breakdown.jsonl")] == [7, 8], "the others were made again"
    events = tensorboard.EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    for tag in ("loss", "tokens_per_s", "a2a_us"):
        assert [event.step for event in events.Tensors(tag)] == list(range(1, 10))
    assert json.loads((run / "run.json").read_text())["entropy"] == pytest.approx(4.338, abs=1e-3)
    assert {path.name for path in (run / "plots").glob("*.png")} == {"loss.png", "throughput.png", "breakdown.png"}
    assert "breakdown.png" in result.stderr
