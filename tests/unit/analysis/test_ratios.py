"""Which cases are compared with which, and where the numbers go: to the table, to results.parquet and to the plots."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from commbench.analysis import ratios
from commbench.analysis.ratios import Speedup
from commbench.cli import _main
from commbench.output import parquet, table
from commbench.records import Case, Row
from commbench.run_folder import RunFolder
from commbench.stats import Verdict
from tests.conftest import here, only_run, unfolded
from tests.support.fake_runs import META, folder, measured, planned

SMALL = ("nodes=2", "ranks_per_node=2", "sizes.min=1K", "sizes.max=4K", "sizes.factor=4")


def rule(case: Case) -> float:
    """2d_intra_first needs half of the time of the others."""
    return case.size_bytes / (20.0 if case.algorithm == "2d_intra_first" else 10.0)


def compare(cases: list[Case], *, launches: int | None = None, **how: Any) -> dict[str, Speedup]:
    made = [m for m in measured(cases, rule, **how) if launches is None or m.launch < launches]
    return ratios.compare(cases, made, lambda m: np.array([m.time_us] * 20, dtype=float))


def test_the_default_with_its_default_parameters_is_the_baseline() -> None:
    cases = planned(*SMALL, "algorithm=direct,pairwise,2d_intra_first", "window=1,2", "launches=10")
    found = compare(cases)
    assert len(found) == len(cases) == 8 and {ratio.baseline for ratio in found.values()} == {"direct"}
    for case in cases:
        ratio = found[case.case_id]
        if case.algorithm == "direct":
            assert ratio == Speedup(baseline="direct") and ratio.verdict is None
        else:
            true = 2.0 if case.algorithm == "2d_intra_first" else 1.0
            assert ratio.speedup == pytest.approx(true, rel=0.05) and ratio.pairs == 10
            assert ratio.verdict == ("faster" if true > 1 else "no difference")
    without = [case for case in cases if case.algorithm != "direct"]
    assert {ratio.baseline for ratio in compare(without).values()} == {"pairwise window=1"}
    assert {r.baseline for r in compare(planned(*SMALL, "algorithm=pairwise", "window=4,2")).values()} == {
        "pairwise window=4"
    }, "the first, where the default was not measured"


def test_payloads_are_compared_with_elements_as_they_are_where_one_algorithm_was_measured() -> None:
    cases = planned(*SMALL, "algorithm=direct", "payload=int8,none,fp8", "launches=10")
    found = ratios.compare(
        cases, list(measured(cases, lambda case: 10.0 if case.arguments else 20.0)), lambda m: np.empty(0)
    )
    assert {ratio.baseline for ratio in found.values()} == {"payload=none"}
    for case in cases:
        ratio = found[case.case_id]
        assert ratio.verdict == ("faster" if case.arguments else None)
        assert ratio.speedup == (pytest.approx(2.0, rel=0.05) if case.arguments else None)
    several = planned(*SMALL, "payload=int8,none", "algorithm=direct,2d_intra_first")
    assert {ratio.baseline for ratio in compare(several).values()} == {"direct"}


def test_only_what_shares_everything_else_is_compared() -> None:
    axes = ("dtype=fp32,bf16", "mode=isolated,pipelined", "env.X=a,b", "algorithm=direct,2d_intra_first")
    cases = planned(*SMALL, *axes)
    found = compare(cases)
    assert len(found) == len(cases) == 32
    assert not compare(planned(*SMALL, "dtype=fp32,bf16", "env.X=a", "algorithm=direct")), "nothing to compare with"
    splits = planned(*SMALL, "collective=all_to_allv", "algorithm=direct,pairwise", "splits=even,linear")
    by_arguments = {tuple(case.arguments.items()) for case in splits}
    assert len(by_arguments) > 1 and sum(r.pairs is None for r in compare(splits).values()) == len(splits) / 2


def test_pairs_are_of_one_process_group() -> None:
    cases = planned(*SMALL, "sizes.max=1K", "algorithm=direct,2d_intra_first")
    made = measured(cases, rule)
    resumed = [
        dataclasses.replace(m, attempt="later") if m.launch == 3 and m.case_id == cases[1].case_id else m for m in made
    ]

    def slowest_us(m: Any) -> Any:
        return np.full(20, m.time_us)

    assert ratios.compare(cases, made, slowest_us)[cases[1].case_id].pairs == 6
    split = ratios.compare(cases, resumed, slowest_us)[cases[1].case_id]
    assert (split.pairs, split.speedup_of) == (5, "samples"), "a resume days later makes no pair"
    again = [*made, *(dataclasses.replace(m, time_us=1.0) for m in made)]
    twice = ratios.compare(cases, again, slowest_us)[cases[1].case_id]
    assert (twice.pairs, twice.speedup) == (6, 1.0), "measured again: the last counts, once"
    none = [dataclasses.replace(m, attempt=m.case_id) for m in made]
    assert ratios.compare(cases, none, slowest_us)[cases[1].case_id] == Speedup(baseline="direct", pairs=0)


def test_few_launches_rest_on_samples_and_lost_samples_on_nothing() -> None:
    cases = planned(*SMALL, "sizes.max=1K", "algorithm=direct,2d_intra_first")
    ratio = compare(cases, launches=2)[cases[1].case_id]
    assert (ratio.speedup_of, ratio.pairs) == ("samples", 2) and ratio.speedup_low and ratio.speedup_low > 1
    assert ratio.verdict == "not estimable" and ratio.speedup_p is None, "twice as fast, and yet no verdict"
    assert "2 launches, 6 are needed for a verdict: launches=6" in ratios.describe_ratios([ratio])
    made = [m for m in measured(cases, rule) if m.launch < 2]
    lost = ratios.compare(cases, made, lambda m: np.empty(0))[cases[1].case_id]
    assert lost.verdict == "not estimable" and lost.speedup and lost.speedup_low is lost.speedup_of is None


def test_a_run_folder_gives_them_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = planned(*SMALL, "algorithm=direct,2d_intra_first", "launches=3")
    run, rows = folder(tmp_path, cases, measured(cases, rule), samples=12)
    found = ratios.of_run(run, rows)
    assert sum(ratio.verdict == "not estimable" for ratio in found.values()) == 2
    parquet.write_results(run, rows, found)
    frame = pd.read_parquet(run.path / "results.parquet")
    assert set(frame["baseline"]) == {"direct"} and frame["pairs"].dropna().tolist() == [3, 3]
    others = frame[frame["label"] != frame["baseline"]]
    assert (others["speedup_low"] > 1.5).all() and (others["speedup_low"] <= others["speedup"]).all()
    assert set(others["speedup_of"]) == {"samples"}
    run.measurements_path.unlink()
    assert {ratio.pairs for ratio in ratios.of_run(run, rows).values()} == {None, 0}
    run.plan_path.unlink()
    assert ratios.of_run(run, rows) == {}
    parquet.write_results(run, rows, {})
    assert pd.read_parquet(run.path / "results.parquet")["speedup"].isna().all()


def shown(rows: list[Row], found: dict[str, Speedup]) -> tuple[list[str], list[list[str]], str]:
    text = unfolded(table.table(rows, {**META, "machine": {"affinity": []}}, found))
    lines = text.splitlines()
    header = next(line for line in lines if "time_us" in line).lstrip("# ").split()
    return header, [line.split() for line in lines if not line.startswith("#")], text


def test_the_table_names_the_baseline_and_marks_no_difference(tmp_path: Path) -> None:
    cases = planned(*SMALL, "sizes.max=1K", "algorithm=direct,pairwise,2d_intra_first")
    run, rows = folder(tmp_path, cases, measured(cases, rule), samples=1)
    found = ratios.of_run(run, rows)
    header, cells, text = shown(rows, found)
    at = header.index("vs_direct")
    assert header[at:] == ["vs_direct", "[x_low-x_high]", "verdict"]
    assert all(len(line) == len(header) for line in cells)
    assert [line[at + 2] for line in cells] == ["-", "=", "faster"] and cells[0][at : at + 2] == ["-"] * 2
    assert "# vs_direct: over direct, launch by launch; 95 % interval over 6 launches" in text
    assert "a verdict takes 6 launches, a gain in a profile 10" in text
    header, cells, text = shown(rows, {})
    assert "vs_" not in text and all(len(line) == len(header) for line in cells)


def test_a_sweep_over_the_scripted_transport(tmp_path: Path) -> None:
    """Messages are dear, bytes are cheap: 2d_intra_first wins small sizes, and its factor makes it lose large ones."""
    script = {"alpha_us": {"intra": 1, "inter": 60}, "gbps": {"intra": 2, "inter": 1}, "noise": 0.02}
    (tmp_path / "s.json").write_text(json.dumps({**script, "factor": {"2d_intra_first": 1.5}}))
    words = ("sweep", "quick", "transport=scripted", "script=s.json", "algorithm=direct,2d_intra_first", "nodes=2")
    sizes = ("ranks_per_node=3", "-b", "1K", "-e", "256K", "-f", "16", "launches=6", "iters=10", "--out", "out")
    done = here(*words, *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "out")
    frame = pd.read_parquet(run / "results.parquet")
    others = frame[frame["pairs"].notna()].sort_values("size_bytes")
    assert set(frame["baseline"]) == {"direct"} and (others["pairs"] == 6).all()
    assert others["speedup_low"].iloc[0] > 1 > others["speedup_high"].iloc[-1]
    names = {path.name for path in (run / "plots").glob("*.png")}
    assert {"crossover-all_to_all-scripted-fp32-isolated.png", "traffic-all_to_all-scripted-2x3.png"} < names
    lines = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    assert any("faster" in line for line in lines) and any("slower" in line for line in lines)
    assert _main(["plot", str(run), "--out", str(tmp_path / "again")]) == 0
    assert {path.name for path in (tmp_path / "again").glob("*.png")} == names
    (run / "measurements.jsonl").unlink()  # somebody kept the results only
    (run / "plan.jsonl").unlink()
    assert _main(["plot", str(run), "--out", str(tmp_path / "kept")]) == 0
    assert {path.name for path in (tmp_path / "kept").glob("*.png")} == names - {
        "crossover-all_to_all-scripted-fp32-isolated.png"
    }
    assert RunFolder.open(run).rows()


def test_routings_are_compared_round_by_round_where_nothing_else_differs() -> None:
    words = ("transport=gloo", "fabric=emulated", "layout=2x2", "spines=2", "routing=static,ecmp,spray", "launches=10")
    factors = {"static": 2.0, "ecmp": 1.5, "spray": 1.0}

    def by_routing(case: Case) -> float:
        assert case.setup.emulated is not None
        return 1000.0 * factors[case.setup.emulated.routing]

    cases = planned(*words, *SMALL[2:], "algorithm=direct")
    made = measured(cases, by_routing, drift=0.0)
    found = ratios.compare(cases, made, lambda m: np.array([m.time_us] * 20, dtype=float))
    assert {ratio.baseline for ratio in found.values()} == {"routing=static"} and len(found) == 6
    for case in cases:
        assert case.setup.emulated is not None
        if case.setup.emulated.routing != "static":
            expected = 2.0 / factors[case.setup.emulated.routing]
            assert found[case.case_id].speedup == pytest.approx(expected, rel=0.05)
            assert found[case.case_id].pairs == 10
    both = planned(*words, *SMALL[2:], "algorithm=direct,bruck")
    made = measured(both, by_routing)
    assert {ratio.baseline for ratio in ratios.compare(both, made, lambda m: np.ones(20)).values()} == {"direct"}


def test_environments_are_compared_round_by_round_where_nothing_else_differs() -> None:
    words = ("env.NCCL_X=unset,4,8", "launches=10", *SMALL[2:])
    factors = {"unset": 2.0, "4": 1.0, "8": 2.0}
    cases = planned("transport=gloo", *words, "algorithm=direct")
    made = measured(cases, lambda case: 1000.0 * factors[case.setup.env["NCCL_X"]], drift=0.0)
    found = ratios.compare(cases, made, lambda m: np.array([m.time_us] * 20, dtype=float))
    assert {ratio.baseline for ratio in found.values()} == {"NCCL_X=unset"} and len(found) == len(cases)
    for case in cases:
        if (value := case.setup.env["NCCL_X"]) != "unset":
            assert found[case.case_id].speedup == pytest.approx(2.0 / factors[value], rel=0.05)
    assert {ratio.verdict for ratio in found.values()} == {None, Verdict.FASTER, Verdict.NO_DIFFERENCE}


@pytest.mark.parametrize(
    ("unset", "one", "judged"),
    [
        ({}, {}, False),  # no port, or an older run
        ({"ports": {"mlx5_0/1": {"port_xmit_data": 9}}}, {"ports": {"mlx5_0/1": {"port_xmit_data": 7}}}, False),
        ({"ports": {"mlx5_0/1": {"x": 9}}}, {"ports": {"mlx5_0/1": {"out_of_sequence": 7}}}, True),
        (
            {"ports": {"mlx5_0/1": {"x": 9}}, "told": {}},
            {"ports": {"m/1": {"x": 1}}, "told": {"NCCL_IB_SL": "1"}},
            True,
        ),
        ({"told": {}}, {"told": {"NCCL_IB_SL": "1"}}, False),
    ],
)
def test_variables_of_routing_have_a_verdict_where_something_shows_that_routing_differed(
    unset: dict[str, Any], one: dict[str, Any], judged: bool, tmp_path: Path
) -> None:
    words = ("env.NCCL_IB_SL=unset,1", "launches=10", *SMALL[2:])
    cases = planned("transport=gloo", *words, "algorithm=direct")
    made = measured(cases, lambda case: 1000.0 * (2 if case.setup.env["NCCL_IB_SL"] == "unset" else 1), drift=0.0)
    found = ratios.compare(cases, made, lambda m: np.array([m.time_us] * 20, dtype=float))
    environment = {case.case_id: case.setup.env["NCCL_IB_SL"] for case in cases}
    for measurement in made:
        log = tmp_path / "logs" / measurement.attempt / "rank-0.json"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps(unset if environment[measurement.case_id] == "unset" else one))
    found = ratios.with_evidence(RunFolder(tmp_path), cases, made, found)
    verdicts = {found[case.case_id].verdict for case in cases if environment[case.case_id] == "1"}
    assert verdicts == {Verdict.FASTER if judged else Verdict.NOT_ESTIMABLE}


def test_partial_sums_are_compared_with_what_is_done_today() -> None:
    words = ("collective=tp_all_to_all", "algorithm=drop_reduce_scatter,all_reduce_drop", "chunks=4,1")
    found = compare(planned(*SMALL, *words, "tp_input=partial"))
    assert {ratio.baseline for ratio in found.values()} == {"all_reduce_drop"}
    alone = compare(planned(*SMALL, *words[:1], "algorithm=drop_reduce_scatter", words[2]))
    assert {ratio.baseline for ratio in alone.values()} == {"drop_reduce_scatter chunks=1"}
