"""What a profile is said to save of a step, against what was planted; and what a tuning of a trace is about."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commbench.cli import _main
from commbench.emulated import Emulated
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.record import folder, recipe
from commbench.records import Case, Measurement, PlannedCase, Status
from commbench.sweep import foreign_keys, prepare
from commbench.tune import CaseTimes, ProcessGroup, describe, run, saving, space
from commbench.tune.saving import StepSaving
from commbench.tune.starts import observe_starts
from tests.support import traces
from tests.support.planted_tunings import Ruled, region, tune
from tests.unit.record.test_folder import written


class _Stage:
    """What a run folder keeps of a stage."""

    def __init__(self, run_id: str, cases: Sequence[Case], found: dict[str, CaseTimes]) -> None:
        self.run_id, self._cases, self._found = run_id, cases, found

    def plan(self) -> list[PlannedCase]:
        return [PlannedCase(case=case) for case in self._cases]

    def measurements(self) -> list[Measurement]:
        return [
            Measurement(case_id=name, launch=group[0], attempt="", order=0, status=Status.OK, time_us=us)
            for name, one in self._found.items()
            for group, us in one.time_us.items()
        ]


class Kept(Ruled):
    """Keeps what it has measured."""

    folders: list[Any]

    def measure(self, stage: str, cases: Sequence[Case]) -> dict[str, CaseTimes]:
        found = super().measure(stage, cases)
        if not hasattr(self, "folders"):
            self.folders = []
        self.folders.append(_Stage(f"{len(self.folders):03}-{stage}-x", cases, found))
        return found


def regions_of(path: Path, **more: Any) -> list[space.Region]:
    """What a tuning of a planted trace would search, over the scripted transport."""
    written(path, uneven=False, **more)
    return space.regions(run.of_program(prepare.configure([str(path), "transport=scripted"])[1], Layout(2, 2)))


def test_what_is_saved_is_what_was_planted(tmp_path: Path) -> None:
    """An exchange of 4 KiB takes half as long another way, one of 1 MiB does not; a step has one of each."""
    (mine,) = regions_of(tmp_path / "t", even=(4096, 1 << 20))

    def time_us(case: Case) -> float:
        usual = 100.0 if case.size_bytes == 4096 else 300.0
        return usual / (2.0 if case.label == "pairwise window=1" and case.size_bytes == 4096 else 1.0)

    measurer = Kept(time_us, 1)
    (mine,) = saving.weigh([mine], recipe.sent_cases(folder.read(tmp_path / "t")).cases)
    assert [problem.calls for problem in mine.problems] == [1.0, 1.0]
    tuned = tune(measurer, mine)
    found = saving.predict([mine], [tuned], measurer.folders)
    assert found is not None and found.low_us is not None and found.high_us is not None
    assert found.exchanges_us == pytest.approx(400, rel=0.2)
    assert found.low_us <= found.saved_us <= found.high_us and 35 < found.saved_us < 70
    twice = saving.predict([weighed(mine, 2.0)], [tuned], measurer.folders)
    assert twice is not None and twice.saved_us == pytest.approx(2 * found.saved_us)


def test_nothing_better_saves_nothing(tmp_path: Path) -> None:
    (mine,) = regions_of(tmp_path / "t", even=(4096, 1 << 20))
    measurer = Kept(lambda case: 100.0, 2)
    tuned = tune(measurer, mine)
    found = saving.predict([weighed(mine, 1.0)], [tuned], measurer.folders)
    assert found is not None and found.saved_us == 0
    assert saving.sentence(found, 51_000, 9_000) == (
        "nothing is saved of a step of 51 ms: no choice is better than the default"
    )
    assert saving.predict([weighed(mine, 1.0)], [tuned], []) is None


def test_a_start_is_judged_by_the_time_of_a_step() -> None:
    """Two sizes: one of many calls that gets 10 % slower, a rare one that gets twice as fast."""
    groups = [ProcessGroup(number, "a") for number in range(10)]
    first = (dict.fromkeys(groups, 100.0), dict.fromkeys(groups, 110.0))
    second = (dict.fromkeys(groups, 100.0), dict.fromkeys(groups, 50.0))
    assert math.exp(float(observe_starts([first, second])[0])) == pytest.approx((100 * 100 / 110 / 50) ** 0.5)
    assert math.exp(float(observe_starts([first, second], [20.0, 1.0])[0])) == pytest.approx(2100 / 2250)


def test_a_start_that_makes_a_recorded_size_slower_is_refused() -> None:
    where = region("nodes=1", "ranks_per_node=2", "sizes.list=4K,64K", "algorithm=direct", "env.SPEED=unset,1")

    def time_us(case: Case) -> float:
        moved = case.setup.env["SPEED"] == "1"
        return 100.0 * ((0.4 if case.size_bytes == 4096 else 1.3) if moved else 1.0)

    assert tune(Ruled(time_us, 3), where).scope.env == {"SPEED": "1"}  # better over all sizes
    assert tune(Ruled(time_us, 3), weighed(where, 1.0)).scope.env == {"SPEED": "unset"}


def weighed(of: space.Region, calls: float) -> space.Region:
    return replace(of, problems=tuple(replace(one, calls=calls) for one in of.problems))


def test_the_prediction_in_words() -> None:
    one = StepSaving(saved_us=4100, low_us=3200, high_us=5000, exchanges_us=12_000, launches=12)
    assert saving.sentence(one, 51_000, 9_000) == (
        "saves 4.1 ms [3.2 - 5] of a step of 51 ms, predicted from 12 launches"
    )
    assert "all that the program waited" in saving.sentence(one, 51_000, 2_000)  # it cannot save more than is waited
    assert "12 launches; less an exchange of counts before each of 4 uneven exchanges a step" in (
        saving.sentence(replace(one, uneven=4.0), 51_000, 9_000)
    )
    assert saving.sentence(one, 51_000, 2_000).startswith("saves 2 ms [2 - 2]")
    assert "of the program's exchanges" in saving.sentence(one, None, None)
    assert saving.sentence(replace(one, low_us=-1.0), 1.0, None).startswith("nothing is saved")


def test_exchanges_whose_counts_have_to_be_exchanged_first_are_said() -> None:
    """A rank knows its own counts only. Where no message carries them, exchanging them is no part of the saving."""
    where = region(
        "nodes=1",
        "ranks_per_node=2",
        "collective=all_to_allv",
        "sizes.list=4K",
        "algorithm=direct,pairwise,counts_first",
    )
    for faster, uneven in (("counts_first", 3.0), ("pairwise window=1", 0.0), ("direct", 0.0)):
        measurer = Kept(lambda case, faster=faster: 100.0 if case.label == faster else 200.0, 1)
        found = saving.predict([weighed(where, 3.0)], [tune(measurer, where)], measurer.folders)
        assert found is not None and found.uneven == uneven


def test_the_next_commands_run_the_recorded_program() -> None:
    trace = replace(traces.planted(), command=["torchrun", "train.py", "a b"])
    assert describe.use(Path("p.json"), trace) == [
        f"{what} --profile p.json -- torchrun train.py 'a b'"
        for what in ("use it: commbench exec", "what it is worth: commbench ab")
    ]
    assert all(
        "--profile p.json --reductions --" in line for line in describe.use(Path("p.json"), trace, reductions=True)
    )
    fabric = Emulated(nodes=2, link="100mbit", message_overhead=30000)
    its = {"fabric": "emulated", **{name: one or "none" for name, one in asdict(fabric).items() if name != "nodes"}}
    line, _ = describe.use(Path("p.json"), replace(trace, fabric=its, command=[]))  # anonymous
    assert line.endswith("-- COMMAND")
    words = shlex.split(line)
    read = foreign_keys.read(words[words.index("p.json") + 1 : words.index("--")]).cluster
    assert read is not None and (read.emulated, read.ranks_per_node) == (fabric, 2)


def test_each_set_of_groups_is_a_scope_of_its_layout(tmp_path: Path) -> None:
    (mine,) = regions_of(tmp_path / "t", groups=((0, 3), (1, 2)))
    assert mine.groups == "ranks:0,3;1,2"
    layout = mine.default.layout.within(mine.groups)
    assert (layout.nodes, layout.ranks_per_node) == (2, 1)
    assert {case.buffers for problem in mine.problems for case in problem.candidates} == {"plain"}


def test_a_program_without_all_to_all_has_nothing_to_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "t", groups=())
    assert _main(["tune", str(tmp_path / "t"), "budget=1m"]) == 2
    said = capsys.readouterr().err
    assert (
        "there is nothing to tune: the program calls no all-to-all" in said and "reductions=true tunes its sums" in said
    )
    assert _main(["tune", str(tmp_path / "t"), "budget=1m", "reductions=true", "--dry-run"]) == 0
    assert "2d leaders=1" in capsys.readouterr().out


def test_sums_of_one_node_have_nothing_to_tune() -> None:
    config = SimpleNamespace(collective=["all_reduce", "all_gather"], groups=["world"], typed=frozenset())
    with pytest.raises(UsageError, match="the program calls no all-to-all"):
        run.of_program([config], Layout(1, 4), reductions=True)  # type: ignore[list-item]
    assert run.read_limits(["reductions=true"])[1].reductions and not run.read_limits([])[1].reductions
    with pytest.raises(UsageError, match="reductions"):
        run.read_limits(["reductions=2"])


def test_a_damaged_trace_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "t")
    (tmp_path / "t/trace.json").write_text(json.dumps({"format": "x"}))
    for command in ("sweep", "tune"):
        assert _main([command, str(tmp_path / "t")]) == 2
        assert "is not a trace" in capsys.readouterr().err.splitlines()[0]


def test_without_a_trace_the_next_step_is_what_any_profile_can_do() -> None:
    step, command = describe.next_step(Path("my p.json"), None)
    assert step == "measure what it is worth in your program"
    assert command == "commbench ab --profile 'my p.json' -- torchrun --nproc-per-node=8 train.py"
    (use,) = describe.use(Path("p.json"), None)
    assert use.startswith("use it: commbench exec --profile p.json -- torchrun ") and "load_profile('p.json')" in use
