"""Two runs, case by case: what is planted is found, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench import stats
from commbench.analysis import compare
from commbench.cli import _main
from commbench.records import FORMAT_VERSION, Case
from tests.conftest import REPOSITORY, unfolded
from tests.support.fake_runs import META, folder, measured, planned

WORDS = ("nodes=1", "ranks_per_node=2", "algorithm=direct,bruck", "sizes.min=1K", "sizes.max=64K", "sizes.factor=4")
MACHINE: dict[str, Any] = {"machine": "x86_64", "cpu": "A", "cpus": 2, "gpus": None, "kernel": "6.1", "commit": "a"}


def made(
    parent: Path, *words: str, factor: float = 1.0, noise: float = 0.01, machine: dict[str, Any] | None = None
) -> Path:
    """A run in which `bruck` takes `factor` times as long as it would."""

    def rule(case: Case) -> float:
        return (20 + case.size_bytes / 1000) * (factor if case.algorithm == "bruck" else 1.0)

    cases = planned(*WORDS, *words)
    run, _ = folder(parent, cases, measured(cases, rule, noise=noise, drift=0.02), 20)
    about = {**META, "run_id": run.run_id, "joined": "", "machine": {**MACHINE, **(machine or {})}}
    about |= {
        "command": ["commbench", "sweep", "quick"],
        "format_version": FORMAT_VERSION,
        "launchers": {},
        "plan_digest": "",
        "timeout_s": 1,
        "seed": 0,
    }
    (run.path / "run.json").write_text(json.dumps(about))
    return run.path


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert last.keys() == {"answer", "format"}
    return lines


def test_a_planted_regression_is_found_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = made(tmp_path / "a", "launches=10"), made(tmp_path / "b", "launches=8", factor=1.2)
    assert _main(["compare", str(before), str(after), "--format", "json"]) == 1
    found = rows(capsys)
    assert len(found) == 8
    for row in found:
        slower = row["label"] == "bruck"
        assert row["outcome"] == ("worse" if slower else "inconclusive") and row["regressed"] is slower
        assert row["low"] <= row["ratio"] <= row["high"] and row["launches"] == [10, 8]
        assert row["ratio"] == pytest.approx(1 / 1.2 if slower else 1, rel=0.05)
    assert _main(["compare", str(after), str(before), "--format", "json"]) == 0
    assert {row["outcome"] for row in rows(capsys) if row["label"] == "bruck"} == {"better"}
    assert _main(["compare", str(before), str(after), "--threshold", "0.3", "--plot", str(tmp_path / "p.png")]) == 0
    text = unfolded(capsys.readouterr().out)
    assert "8 cases: 0 better, 4 worse, 4 inconclusive; 0 regressed by more than 30 %" in text
    assert "# answer: 0 of 8 cases regressed by more than 30 %" in text and "takes 1.20x as long" in text
    assert "fp32, isolated: bruck: the second run is slower from 1 KiB to 64 KiB, takes 1." in text
    assert text.endswith("# next: nothing to repair\n")
    assert _main(["compare", str(before), str(after)]) == 1
    assert capsys.readouterr().out.endswith("then measure the second run again: commbench doctor\n")
    assert _main(["compare", str(before), str(before)]) == 0
    assert "# answer: no difference is proven in 8 cases: ratios are between 0.9" in unfolded(capsys.readouterr().out)
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_few_launches_are_compared_by_their_samples_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = made(tmp_path / "a", "launches=3"), made(tmp_path / "b", "launches=10", factor=1.5)
    assert _main(["compare", str(before), str(after)]) == 0, "three launches are no verdict"
    text = unfolded(capsys.readouterr().out)
    assert "# of: samples\n" in text and "0 better, 0 worse, 8 inconclusive" in text
    assert "# answer: nothing is proven: 3 launches, 6 are needed for a verdict: launches=6" in text
    assert text.endswith("# next: measure both runs with launches=6: commbench sweep quick launches=6\n")


def test_other_machines_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = made(tmp_path / "a", "launches=6")
    after = made(tmp_path / "b", "launches=6", machine={"cpu": "B", "kernel": "6.2"})
    assert _main(["compare", str(before), str(after)]) == 2
    error = capsys.readouterr().err
    assert "cpu was 'A', is 'B'" in error and "--allow-mismatch" in error and "kernel" not in error
    assert _main(["compare", str(before), str(after), "--allow-mismatch"]) in (0, 1)
    assert "differs: kernel was '6.1', is '6.2'" in capsys.readouterr().err


def test_another_gpu_of_the_same_kind_is_no_other_machine() -> None:
    def source(uuid: str, memory: str) -> compare.ComparedRun:
        machine = {**MACHINE, "gpus": [{"name": "H200", "uuid": uuid, "memory_bytes": 5}], "memory": memory}
        return compare.ComparedRun(path=Path("x"), machine=machine, points={})

    assert compare.mismatches(source("1", "263998500 kB"), source("2", "263998460 kB")) == ([], [])


def test_runs_without_a_common_case_and_paths_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = made(tmp_path / "a", "launches=6"), made(tmp_path / "b", "launches=6", "dtype=bf16")
    assert _main(["compare", str(before), str(after)]) == 2
    said = capsys.readouterr().err
    assert "no case in common: set-ups: " in said and ", fp32, " in said and ", bf16, " in said and "after" in said
    assert "sizes:" not in said, "they have those in common"
    assert _main(["compare", str(before), str(tmp_path / "nothing")]) == 2
    assert "no run in" in capsys.readouterr().err


def test_files_of_nccl_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = REPOSITORY / "tests/data/formats/nccl-tests-2.19-alltoall.txt"
    assert _main(["compare", str(file), str(file), "--format", "json"]) == 0
    found = rows(capsys)
    assert found and {row["ratio"] for row in found} == {1.0} and {row["low"] for row in found} == {None}
    run = made(tmp_path / "a", "launches=6", "sizes.min=4M", "sizes.max=4M")
    assert _main(["compare", str(run), str(file), "--format", "json"]) == 0
    beside = rows(capsys)
    assert {row["label"] for row in beside} == {"direct / nccl-tests 2.19.6", "bruck / nccl-tests 2.19.6"}
    assert {row["after_us"] for row in beside} == {21.77}


FORMATS = REPOSITORY / "tests/data/formats"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("nccl-tests-ops.txt", 6),
        ("nccl-tests-roots.txt", 4),
        ("rccl-tests-cycles.txt", 4),
        ("nccl-tests-old-mpirun.txt", 5),  # of six, one is wrong
        ("nccl-tests-v3.json", 2),
        ("nccl-tests-per-iteration.txt", 1),  # one is wrong, two have no size
    ],
)
def test_a_file_is_equal_to_itself(capsys: pytest.CaptureFixture[str], name: str, count: int) -> None:
    assert _main(["compare", str(FORMATS / name), str(FORMATS / name), "--format", "json"]) == 0
    found = rows(capsys)
    assert [row["ratio"] for row in found] == [1.0] * count


def test_our_own_text_is_equal_to_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two modes, groups and an overlap: only what its description says tells these tests apart."""
    known = [
        ("isolated", 1.0),
        ("pipelined", 2.0),
        ("pipelined, groups=blocks:2", 3.0),
        ("pipelined, groups=blocks:2, overlap=matmul", 4.0),
    ]
    good = (FORMATS / "nccl-tests-2.19-alltoall.txt").read_text()
    start = good.index("# Using devices")
    table = good[: good.index("        1024 ")]
    texts = [
        f"# commbench: direct over gloo, {words}\n{table[start:]}"
        f"{8192:12d} {1024:12d}     float    none      -1  {time:.2f} {8.192 / time:.2f} {4.096 / time:.2f} 0"
        f"      nan     nan     nan     N/A\n# Avg bus bandwidth    : 1\n"
        for words, time in known
    ]
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("# Collective test starting: alltoall_perf\n".join(["", *texts]))
    two.write_text("# Collective test starting: alltoall_perf\n".join(["", *reversed(texts)]))
    assert _main(["compare", str(one), str(two), "--format", "json"]) == 0
    found = rows(capsys)
    assert [(row["before_us"], row["ratio"]) for row in found] == [(time, 1.0) for _, time in known]


def test_a_file_is_compared_with_the_cases_of_its_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the rule that `plot` has: op, place of the output, groups and overlap."""
    words = ("collective=all_reduce", "op=max,sum", "in_place=false,true", "algorithm=direct")
    sizes = ("sizes.min=1M", "sizes.max=1M")
    run, file = made(tmp_path / "a", *words, *sizes), FORMATS / "nccl-tests-ops.txt"
    assert _main(["compare", str(run), str(file), "--format", "json"]) in (0, 1)
    found = {(row["set_up"].split(", ")[0], "in place" in row["set_up"]): row["after_us"] for row in rows(capsys)}
    expected = {"sum": (100.0, 99.0), "max": (200.0, 199.0)}
    assert found == {
        (f"all_reduce op={op}", bool(place)): times[place] for op, times in expected.items() for place in (0, 1)
    }
    run = made(tmp_path / "b", *words[:1], "algorithm=direct", "ranks_per_node=4", "groups=blocks:2", *sizes)
    four = tmp_path / "four.txt"
    lines = file.read_text().replace("10.49   10.49", "10.49   15.74").replace("10.59   10.59", "10.59   15.89")
    four.write_text("\n".join(line for line in lines.splitlines() if "Rank" not in line and " m" not in line[:43]))
    assert _main(["compare", str(four), str(four), "--ranks", "4"]) == 0
    capsys.readouterr()
    assert _main(["compare", str(run), str(four), "--ranks", "4"]) == 2
    assert "no case in common" in capsys.readouterr().err


def test_the_interval_of_two_runs_holds_the_truth() -> None:
    """Of two equal runs, with launches of 10 % spread, at most 5 % should be told apart; 9 % are let pass here."""
    rng = np.random.default_rng(5)
    told_apart = 0
    for seed in range(300):
        arms = [[rng.normal(100 * rng.lognormal(0, 0.1), 1, 20) for _ in range(7)] for _ in range(2)]
        known = stats.unpaired_ratio(*arms, seed=seed)
        assert known is not None and known.interval is not None
        low, high, of = known.interval
        assert low <= known.value <= high and of == "launches"
        told_apart += stats.verdict(low, high) is not stats.Verdict.NO_DIFFERENCE
    assert told_apart <= 27
    assert stats.unpaired_ratio([], [np.ones(9)]) is None and stats.unpaired_ratio([np.ones(3)], [np.ones(9)]) is None
    assert stats.unpaired_ratio([np.zeros(9)], [np.ones(9)]) is None
