"""The order of strategies: what is pruned, how sure it is, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from commbench.errors import UsageError
from commbench.strategy import answer, emit, planned
from commbench.strategy.choices import choices
from commbench.strategy.ranking import PlanProblem, Ranking, rank
from commbench.strategy.setting import Setting
from tests.unit.strategy.shapes import cluster, deepseek, mixed, table1

WHERE = ["gpu=h100", "nodes=2", "inter_gbs=400"]


@pytest.fixture(scope="module")
def qwen() -> tuple[PlanProblem, Ranking]:
    """Qwen3-30B on two nodes, with what somebody runs now."""
    request = planned.read(["qwen3-30b-a3b", *WHERE, "current=tp4,ep8,redo,mb2"])
    return request.problem, rank(request.problem, current=request.current)


def test_sizes_multiply_to_the_cluster(qwen: tuple[PlanProblem, Ranking]) -> None:
    for one in qwen[1].ranked:
        its = one.setting
        assert its.tp * its.cp * its.pp * its.dp == 16 == its.etp * its.ep * its.edp * its.pp
        assert 128 % its.ep == 0 and 32 % its.tp == 0 and 1024 % (its.dp * its.micro_batch) == 0


def test_nothing_is_above_memory_and_probabilities_add_up(qwen: tuple[PlanProblem, Ranking]) -> None:
    found = qwen[1]
    assert found.fitting < found.points, "some do not fit"
    assert all(one.needed_gib <= 80 for one in found.ranked)
    assert sum(one.p_best for one in found.ranked) == pytest.approx(1)
    assert [one.us for one in found.ranked] == sorted(one.us for one in found.ranked)
    assert all(one.low_us <= one.us <= one.high_us for one in found.ranked)
    assert [one.rank for one in found.ranked] == list(range(1, len(found.ranked) + 1))


def test_what_runs_now_has_a_rank(qwen: tuple[PlanProblem, Ranking]) -> None:
    now = qwen[1].current
    assert now is not None and now in qwen[1].ranked
    assert now.setting == Setting(tp=4, dp=4, ep=8, edp=2, micro_batch=2, recompute="redo")
    assert now.us > qwen[1].ranked[0].us and not now.tied


def test_the_group_holds_one_of_each_line(qwen: tuple[PlanProblem, Ranking]) -> None:
    group = answer.group(qwen[1])
    assert group[0].rank == 1 and 1 < len(group) <= 5 and all(one.tied for one in group)
    assert len({one.line for one in group}) == len(group)


def test_a_line_holds_a_layout_and_a_schedule_and_says_what_differs(qwen: tuple[PlanProblem, Ranking]) -> None:
    ranked = qwen[1].ranked
    lines = choices(ranked)
    assert sum(one.p_best for one in lines) == pytest.approx(1) and len(lines) < len(ranked) / 3
    assert [one.best.rank for one in lines] == sorted(one.best.rank for one in lines)
    first = lines[0]
    assert first.alike and first.tied
    for one in first.alike:
        for name in ("tp", "cp", "pp", "ep", "etp"):
            assert getattr(one.setting, name) == getattr(first.best.setting, name)
        assert one.setting.schedule.name == first.best.setting.schedule.name
    members = (first.best, *first.alike)
    batches = sorted({one.setting.micro_batch for one in members})
    said = f"mb {', '.join(map(str, batches))}"
    assert (said in first.differs) == (len(batches) > 1) and first.differs


def test_losers_say_what_they_lose_by(qwen: tuple[PlanProblem, Ranking]) -> None:
    tied = {one.setting for one in qwen[1].tied}
    assert not any(one.setting in tied for one in qwen[1].losers), "what cannot be told from the first loses by nothing"
    reasons = [one.reason for one in qwen[1].losers]
    assert any("of 80 GiB" in one for one in reasons), "the faster ones that do not fit"
    assert any(one.endswith(" ms") for one in reasons)


def test_another_seed_keeps_the_middle(qwen: tuple[PlanProblem, Ranking]) -> None:
    problem = qwen[0]
    settings = problem.settings().take(np.arange(50))
    other = dataclasses.replace(problem, seed=1)
    assert np.array_equal(problem.times(settings, problem.draw(1)).us, other.times(settings, other.draw(1)).us)


def test_experts_move_inside_a_node_where_the_network_is_slow() -> None:
    """16 H100, 8 on a node: all share the experts until a node's links are about as fast as one GPU's inside it."""
    spans = []
    for inter in (50_000.0, 3_600.0, 200.0, 20.0):
        on = cluster(2, inter=inter, memory_gib=1000.0, alpha=1e-3)
        axes = {"pp": [1], "tp": [1], "ep": [8, 16], "schedule": ["sequential"], "exchange": ["per_choice"]}
        problem = PlanProblem(model=deepseek(2), work=mixed(512), cluster=on, axes=axes)
        spans.append(rank(problem, most=50).ranked[0].setting.ep)
    assert spans == sorted(spans, reverse=True) and (spans[0], spans[-1]) == (16, 8)


def test_a_model_that_fits_nowhere_says_what_is_short_and_what_would_fit() -> None:
    request = planned.read(["monta-2x70b", "gpu=a800", "nodes=1", "state_bytes=18"])
    with pytest.raises(UsageError) as caught:
        rank(request.problem)
    assert "fits nowhere" in str(caught.value) and "of a GPU's 80" in str(caught.value)
    assert caught.value.hint.startswith("what would fit: nodes=")
    nodes = int(caught.value.hint.split("nodes=")[1].split(",")[0])
    more = planned.read(["monta-2x70b", "gpu=a800", f"nodes={nodes}", "inter_gbs=200", "state_bytes=18"]).problem
    assert rank(more, most=10).ranked[0].margin_gib >= 0, "and it does"


@pytest.mark.parametrize("words", [
    ["monta-2x70b", "gpu=a800", "nodes=2", "inter_gbs=200"],
    ["table1-scaled", "gpu=h200", "nodes=1", "gpus_per_node=2"],
    ["mixtral-8x7b", "gpu=h100", "nodes=4", "inter_gbs=100", "pp=2", "vpp=2"],
])  # fmt: skip
def test_models_are_ranked(words: list[str]) -> None:
    request = planned.read(words)
    found = rank(request.problem, most=20)
    assert found.ranked[0].p_best > 0 and found.ranked[0].binds
    for name in emit.TABLE:
        best: Any = next((one for one in found.ranked if name in one.trainers), None)
        text = emit.emitted(name, request.problem, {name: best}, request.model.config)
        assert text.startswith(f"# {name}: ")


def test_ours_runs_what_ours_can(qwen: tuple[PlanProblem, Ranking]) -> None:
    problem = PlanProblem(model=table1(8), work=mixed(64), cluster=cluster(2, 4), trainer="commbench")
    settings = problem.settings()
    assert (settings.pp == 1).all() and (settings.ep * settings.etp == 8).all()
