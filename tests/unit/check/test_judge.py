"""Who is named in checks whose samples were drawn, and what leaves a check without a verdict."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commbench.check import HealthVerdict, describe, drift
from commbench.check.judge import HealthReport, judge
from commbench.records import Status
from commbench.run_folder import RunFolder
from tests.support import drawn_checks

CASES = drawn_checks.cases()
BUSY = {**drawn_checks.QUIET, "others": 1.0, "much": True, "busiest": [{"pid": 7, "name": "hog{}", "cpus": 1.0}]}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return drawn_checks.draw(tmp_path_factory.mktemp("healthy"), 1, of=CASES, launch_noise=0.02)


@pytest.fixture
def copy(healthy: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(healthy.path, tmp_path / healthy.run_id)))


def judged(parent: Path, seed: int = 1, **planted: Any) -> HealthReport:
    return judge(drawn_checks.draw(parent, seed, of=CASES, **planted))


def test_a_healthy_fleet_is_healthy(healthy: RunFolder) -> None:
    report = judge(healthy)
    assert (report.verdict, report.named, report.doubts) == (HealthVerdict.HEALTHY, [], [])
    assert {part.name: part.status for part in report.parts} == {
        "doctor": "ok", "CPUs": "ok", "nodes": "note", "results": "ok", "pairs": "ok", "all-to-all": "ok", "noise": "ok"
    }  # fmt: skip
    assert describe.text(report, describe.answer(report, "R")).startswith("HEALTHY: ")


def test_a_slow_link_is_named_by_its_rate_and_a_slow_rank_by_its_times(tmp_path: Path) -> None:
    report = judged(tmp_path, slow_link=(2, "out", 3.0), slow_rank=(1, 2.0))
    link, rank = sorted(report.named, key=lambda one: one.kind)
    assert report.verdict is HealthVerdict.NOT_HEALTHY
    assert (link.name, link.about) == ("node 2's link out", {"nodes": [2], "direction": "out"})
    assert link.low is not None and link.high is not None and link.low <= 3.0 <= link.high < 3.5
    assert (rank.name, rank.about["ranks"]) == ("rank 1 (node 0)", [1])
    assert rank.low is not None and rank.high is not None and rank.low <= 2.0 <= rank.high
    said = describe.text(report, describe.answer(report, "R"))
    assert said.startswith(f"NOT HEALTHY: {report.named[0].sentence}\n") and "bytes alone 3.0" in said


def test_ranks_of_a_launcher_have_repeats_in_place_of_launches(tmp_path: Path) -> None:
    report = judge(drawn_checks.draw(tmp_path, 3, joined=True, slow_link=(0, "both", 3.0)))
    (link,) = report.named
    assert (link.name, report.launches) == ("node 0's link", 6) and link.low is not None and link.low <= 3.0
    assert "slow in 6 of 6 repeats of one launch" in " ".join(link.evidence)


def test_a_busy_cpu_is_named_where_it_is_busy_most_of_the_time(copy: RunFolder) -> None:
    paths = sorted(copy.path.glob("logs/*/host-0.json"))
    for path in paths[:3]:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"looks": [BUSY]}))
    assert judge(copy).verdict is HealthVerdict.HEALTHY
    for path in paths[3:]:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"looks": [BUSY, BUSY]}))
    report = judge(copy)
    (cpu,) = report.named
    assert (cpu.kind, cpu.ratio, cpu.low, cpu.high) == ("cpu", 1.5, 1.5, 1.5)
    taken = "host h has 1.0 of 2 CPUs taken by hog{} (pid 7); sharing them makes ranks 1.50x slow [1.50-1.50]"
    assert cpu.sentence == taken


def test_what_doctor_warns_of_a_gpu_is_a_fault_and_a_setting_is_a_note(tmp_path: Path) -> None:
    one = {"section": "GPUs", "name": "slowed", "status": "warn", "value": "GPU 0: power", "why": "w", "do": "d"}
    report = judged(tmp_path, host={"doctor": [one, {**one, "name": "clocks"}, {**one, "section": "network"}]})
    assert [(item.kind, item.sentence) for item in report.named] == [
        ("hardware", "host h has GPUs in trouble (slowed): GPU 0: power")
    ]
    assert [part.status for part in report.parts if part.name == "doctor"] == ["bad", "note", "note"]


def test_all_slow_alike_show_in_the_bound_alone(tmp_path: Path) -> None:
    report = judged(tmp_path, slower=9.0)
    assert [one.kind for one in report.named] == ["bound"]
    assert report.named[0].sentence.startswith("the all-to-all of all ranks reaches ")


def test_nobody_can_tell_from_noise_from_few_launches_or_from_nothing(tmp_path: Path, copy: RunFolder) -> None:
    noisy = judged(tmp_path, noise=1.0, launch_noise=0)
    assert noisy.verdict is HealthVerdict.CANNOT_TELL and "too noisy to see 1.3x" in noisy.doubts[-1]
    folder = copy
    lines = folder.measurements_path.read_text().splitlines(keepends=True)
    folder.measurements_path.write_text("".join(lines[: 3 * len(CASES)]))
    folder.cases_path.unlink()
    few = judge(folder)
    assert (few.verdict, few.doubts) == (
        HealthVerdict.CANNOT_TELL, ["3 launches, 6 are needed for a verdict: launches=6"]
    )  # fmt: skip
    folder.measurements_path.write_text("")
    nothing = judge(folder)
    assert (nothing.verdict, nothing.doubts[0]) == (HealthVerdict.CANNOT_TELL, "nothing was measured")
    assert describe.text(nothing, describe.answer(nothing, "R")).startswith("CANNOT TELL: nothing was measured\n")


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(Status.WRONG_RESULT, "not_healthy"), (Status.TIMEOUT, "not_healthy"), (Status.ERROR, "cannot_tell")],
)
def test_a_wrong_result_is_no_health_and_an_error_no_verdict(copy: RunFolder, status: Status, verdict: str) -> None:
    folder = copy
    row = next(iter(folder.rows().values()))
    folder.append_row(replace(row, status=status, reason="rank 3 says so"))
    report = judge(folder)
    assert report.verdict == verdict
    assert "rank 3 says so" in " ".join([*report.doubts, *(one.sentence for one in report.named)])


def test_drift_is_what_became_slower_for_certain(tmp_path: Path, healthy: RunFolder) -> None:
    before = healthy
    later = drawn_checks.draw(tmp_path, 3, of=CASES, launch_noise=0.02, slower=1.4)
    report = compared(before, later)
    assert {one.kind for one in report.named} == {"drift"}
    (first, *_) = report.named
    assert first.name == "the all-to-all at 1 MiB" and first.low is not None and first.high is not None
    assert first.low <= 1.4 <= first.high and f"slow since {before.run_id}" in first.sentence
    assert compared(later, before).verdict is HealthVerdict.HEALTHY  # faster is no fault


def compared(before: RunFolder, after: RunFolder) -> HealthReport:
    report = judge(after)
    drift.compare(report, before.path, after)
    return report
