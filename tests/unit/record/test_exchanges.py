"""What a trace says of each exchange, against what was planted."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from commbench.errors import UsageError
from commbench.record import folder, recipe
from commbench.record.exchanges import exchanges, sent_matrices
from commbench.sweep import plan, prepare
from tests.support import traces
from tests.unit.record.test_folder import written


def test_an_exchange_a_step_without_what_was_set_up() -> None:
    found = {one.collective: one for one in exchanges(traces.planted())}
    assert found.keys() == {"all_to_all", "all_to_allv", "all_reduce"}  # the broadcast was before the first step
    even = found["all_to_all"]
    assert (even.calls, even.nbytes, even.ranks, even.groups, even.site) == (1, 1 << 20, 2, 2, "moe.py:20")
    assert even.exposed_us == pytest.approx(501.5) == even.time_us  # rank r waits r us longer
    assert even.late_us == pytest.approx(1.0)  # of ranks 0 and 2, one waits 2 us longer than the other
    assert found["all_to_allv"].time_us is None and found["all_to_allv"].exposed_us == pytest.approx(500)
    assert found["all_reduce"].ranks == 4 and even.skew is None and (found["all_to_allv"].skew or 0) > 1.01


def test_what_is_waited_for_most_comes_first() -> None:
    order = [one.collective for one in exchanges(traces.planted(even=(1 << 20, 1 << 10)))]
    assert order[0] == "all_to_all"


def test_matrices_are_put_together_from_what_ranks_kept() -> None:
    found = list(sent_matrices(traces.planted(steps=6)))
    assert len(found) == 2 * 6 and sum(one.weight for one in found) == 2 * 6
    assert all(one.matrix.shape == (2, 2) for one in found)
    assert len([*sent_matrices(traces.planted(steps=6, fixed=True))]) == 2 * 6


def test_no_matrix_without_the_calls_of_all_ranks_of_a_group() -> None:
    whole = traces.planted(steps=6)
    part = replace(whole, calls=[one for one in whole.calls if one.rank != 2])
    assert {one.group for one in sent_matrices(part)} < {one.group for one in sent_matrices(whole)}
    alone = replace(whole, calls=[one for one in whole.calls if one.rank == 0])
    assert not list(sent_matrices(alone)) and exchanges(alone)


def test_a_program_without_steps_counts_as_a_whole() -> None:
    found = {one.collective: one for one in exchanges(traces.planted(steps=1))}
    assert found["broadcast"].calls == 1 and found["all_to_all"].calls == 1


def test_a_recipe_of_what_was_sent() -> None:
    sent = recipe.sent_cases(traces.planted(even=(1 << 20, 3 << 20)))
    kinds = {(one.collective, one.groups, one.dtype, one.size_bytes): one.calls for one in sent.cases if not one.matrix}
    assert kinds == {
        ("all_to_all", "rails", "bf16", 1 << 20): 1,
        ("all_to_all", "rails", "bf16", 3 << 20): 1,
        ("all_reduce", "world", "fp32", 1 << 16): 1,
    }
    uneven = [one for one in sent.cases if one.matrix]
    assert 1 <= len(uneven) <= 4 and sum(one.calls for one in uneven) == pytest.approx(1, rel=0.01)
    assert all(max(map(sum, json.loads(one.matrix))) <= one.size_bytes for one in uneven)


@pytest.mark.parametrize(("groups", "word"), [(((0, 3), (1, 2)), "ranks:0,3;1,2"), (((0, 1), (2, 3)), "blocks:2")])
def test_groups_of_any_ranks(groups: tuple[tuple[int, ...], ...], word: str) -> None:
    sent = recipe.sent_cases(traces.planted(groups=groups))
    assert {one.groups for one in sent.cases} == {word, "world"}


def test_groups_without_some_ranks_are_left_out_in_words() -> None:
    sent = recipe.sent_cases(traces.planted(groups=((0, 1),)))
    assert {one.collective for one in sent.cases} == {"all_reduce"}
    assert "all_to_all in groups of 2 that have 2 of 4 ranks" in sent.left_out


def test_many_sizes_become_a_few_and_no_call_is_lost() -> None:
    sizes = tuple(4096 + 64 * number for number in range(30))
    sent = recipe.sent_cases(traces.planted(even=sizes, uneven=False))
    mine = [one for one in sent.cases if one.collective == "all_to_all"]
    assert len(mine) == 12 and sum(one.calls for one in mine) == pytest.approx(30)
    assert {one.size_bytes for one in mine} <= {*sizes}


def test_a_sweep_of_a_trace_measures_what_was_sent(tmp_path: Path) -> None:
    written(tmp_path / "trace", even=(1 << 20, 4096))
    name, configs = prepare.configure([str(tmp_path / "trace"), "launches=2"])
    assert name == str(tmp_path / "trace")
    cases = [item.case for item in plan.expand(configs) if not item.skip]
    sizes: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for case in cases:
        sizes[case.collective, case.groups, case.dtype].add(case.size_bytes)
    assert sizes["all_to_all", "rails", "bf16"] == {1 << 20, 4096}
    assert sizes["all_reduce", "world", "fp32"] == {1 << 16}
    assert {str(case.setup.layout) for case in cases} == {"2x2"}
    wanted = {one.matrix for one in recipe.sent_cases(folder.read(tmp_path / "trace")).cases if one.matrix}
    assert {case.arguments["matrix"] for case in cases if case.collective == "all_to_allv"} == wanted
    # The file of the trace is the same recipe.
    again = plan.expand(prepare.configure([str(tmp_path / "trace/recipe.yaml"), "launches=2"])[1])
    assert {item.case.case_id for item in again} == {item.case.case_id for item in plan.expand(configs)}


def test_a_folder_that_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trace in"):
        prepare.configure([str(tmp_path)])


def test_a_trace_of_nothing_that_a_sweep_has(tmp_path: Path) -> None:
    made = traces.planted(groups=(), steps=3)
    folder.finish(folder.begin(tmp_path / "trace"), replace(made, calls=[]), "")
    with pytest.raises(UsageError, match="can measure nothing of the trace"):
        prepare.configure([str(tmp_path / "trace")])
