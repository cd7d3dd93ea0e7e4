"""Plans beside trainings: those on record, and launches by turns."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from commbench.errors import UsageError
from commbench.strategy import planned, validation
from commbench.strategy.ranking import rank
from commbench.strategy.setting import SCHEDULES, Setting, Settings
from tests.conftest import REPOSITORY

ON_RECORD = REPOSITORY / "results/reference/train_ab-2x4-2cpu"
BY_LABEL = {one.label: one for one in SCHEDULES}
# Two CPUs, as they were measured (tests/bench/plan.py): products of one, calls of groups, and what the host takes for a
# kernel and a step, by two trainings of one rank.
DATA = REPOSITORY / "tests/data/plan"
WORDS = ["emulated-2x4", "nodes=2", "gpus_per_node=4", "memory_gb=4", "peak_tflops=0.1", "memory_gbs=10", "cores=2",
         "launch_us=14.5", "step_us=1300", f"gemm={DATA / 'gemm-2cpu.jsonl'}", f"costs={ON_RECORD / 'model.json'}",
         f"calls={DATA / 'calls-2x4-2cpu.jsonl'}", "trainer=commbench"]  # fmt: skip


def taken_ms(folder: str) -> float:
    """Return the median step of the baseline's ten launches."""
    lines = [json.loads(line) for line in (ON_RECORD / folder / "launches.jsonl").read_text().splitlines()]
    return statistics.median(line["step_us"] for line in lines if line["arm"] == "baseline") / 1e3


def test_steps_on_record_lie_in_the_intervals_and_in_their_order() -> None:
    """Calls are of plain collectives, and so of none of these; the third says how much longer steps take."""
    cells = {
        "tp2_tuned_over_default": Setting(tp=2, dp=4, ep=4, etp=2, micro_batch=2, schedule=BY_LABEL["drop"]),
        "tp2_tuned_over_duplicate": Setting(tp=2, dp=4, ep=4, etp=2, micro_batch=2, schedule=BY_LABEL["duplicate"]),
        "tuned_over_default": Setting(tp=4, dp=2, ep=2, etp=4, micro_batch=4, schedule=BY_LABEL["drop"]),
        "tuned_over_duplicate": Setting(tp=4, dp=2, ep=2, etp=4, micro_batch=4, schedule=BY_LABEL["duplicate"]),
    }
    taken = [taken_ms(folder) for folder in cells]
    now = ["current=tp4,ep2,etp4,mb4,drop", f"current_ms={taken[2]}"]
    problem = planned.read([*WORDS, *now]).problem
    us = problem.drawn_us(Settings.of(cells.values())) / 1e3
    low, middle, high = np.quantile(us, (0.05, 0.5, 0.95), axis=0)
    assert taken == sorted(taken) and list(middle) == sorted(middle)
    assert all(a < ms < b for a, ms, b in zip(low, taken, high, strict=True))
    assert np.abs(middle / taken - 1).max() < 0.14 and abs(middle[2] / taken[2] - 1) < 0.02
    alone = planned.read(WORDS).problem
    plain = np.median(alone.drawn_us(Settings.of(cells.values())), axis=0) / 1e3
    assert np.abs(plain / taken - 1).max() < 0.2 and (plain < taken).all(), "calls in a training take a tenth more"


def test_launches_go_by_turns_until_the_budget_ends(tmp_path: Path) -> None:
    request = planned.read([*WORDS, "recompute=none", "zero=1"])
    group = validation.members(request, rank(request.problem, most=20).ranked[:3])
    order: list[str] = []
    clock = iter(range(0, 10_000, 10))

    def train(_: object, setting: Setting, *rest: object) -> float:
        order.append(setting.label)
        return 1e6 if setting == group[1].setting else 1.1e6

    with (
        mock.patch.object(validation, "train_once", train),
        mock.patch.object(validation.time, "monotonic", lambda: float(next(clock))),
    ):
        found = validation.validate(request, group, 150.0, tmp_path, lambda text: None)
    labels = [one.setting.label for one in group]
    assert order == labels * 2, "a third round would be over"
    assert validation.as_dict(found)["regret"] == pytest.approx(0.1)
    said = validation.sentence(found)
    assert "2 of each of 3" in said and f"10.0 % slower than {labels[1]}" in said


def test_what_ours_cannot_train_is_refused() -> None:
    request = planned.read(["qwen3-30b-a3b", "gpu=h100", "nodes=1"])
    with pytest.raises(UsageError, match="is no recipe of commbench train"):
        validation.members(request, [])
    with pytest.raises(UsageError, match="runs none of the group"):
        validation.members(planned.read(WORDS), [])
