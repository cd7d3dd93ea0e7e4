"""The yardstick: which rates hold, what they bound, and how a row says it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from commbench import formats
from commbench.analysis import bounds, compare
from commbench.analysis.bounds import Told
from commbench.analysis.ratios import Speedup
from commbench.analysis.summary import Samples
from commbench.errors import UsageError
from commbench.formats import Result
from commbench.links import LinkRate, parse_link_rates
from commbench.output.answer import yardstick
from commbench.output.answer.sweep import answer
from commbench.output.combine import combine
from commbench.output.table import table
from commbench.plots.settings import FIGURE_KEYS
from commbench.records import Fabric, Row
from commbench.run_folder import RunFolder
from commbench.sweep import prepare
from tests.conftest import REPOSITORY, here, only_run, unfolded
from tests.support import foreign_logs
from tests.support.fake_runs import ABOUT, META, folder, measured, planned, rows_of

DATA = REPOSITORY / "tests/data/formats"
SAMPLES = Samples(RunFolder(Path("/nowhere")))
WORDS = ("layout=4x2", "algorithm=direct", "launches=6", "sizes.list=8M")
EIGHT_MIB = 8 << 20


def row_of(fabric: Fabric, inter: LinkRate | None, *rates: str, time_us: float) -> Row:
    cases = planned(*WORDS)
    links = {"inter": inter} if inter else None
    found = measured(cases, lambda case: time_us, noise=0.0, drift=0.0)
    found = [dataclasses.replace(m, fabric=fabric, links=links) for m in found]
    (row,) = (rows_of(cases, found, SAMPLES),)[0]
    return bounds.rebound(row, cases[0], found[0], parse_link_rates(rates))


def test_declared_rates_take_the_place_of_others_and_say_so() -> None:
    found = LinkRate(gbps=10.0, of="node", kind="nominal", source="eth0")
    row = row_of(Fabric.REAL, found, time_us=2000.0)
    # Of 8 MiB a rank sends 6/8 to other nodes, its node twice that, over 10 GB/s.
    assert row.bound_us == pytest.approx(2 * EIGHT_MIB * 6 / 8 / 10e3)
    assert (row.bound_kind, row.bound_gbps) == ("nominal", pytest.approx(5 * 7 / 6))
    assert row.bound_fraction == pytest.approx((row.busbw_gbps or 0) / (row.bound_gbps or 1))
    row = row_of(Fabric.REAL, found, "inter=2x200gbit", time_us=2000.0)
    assert (row.bound_kind, row.bound_gbps) == ("declared", pytest.approx(25 * 7 / 6))
    row = row_of(Fabric.REAL, found, "inter=2x200gbit", "intra=1GBps", time_us=2000.0)
    assert (row.bound_kind, row.bound_gbps) == ("declared", pytest.approx(1 * 7 / 1)), "the inside of the node binds"
    row = row_of(Fabric.REAL, None, time_us=2000.0)
    assert (row.bound_kind, row.bound_gbps, row.bound_us, row.bound_fraction) == ("", None, None, None)


@pytest.mark.parametrize("fabric", [Fabric.DECLARED, Fabric.VIRTUAL])
def test_nodes_that_are_no_machines_have_no_cards(fabric: Fabric) -> None:
    row = row_of(fabric, None, "inter=400gbit", time_us=2000.0)
    assert row.bound_gbps is None
    assert "no bound: nothing passes a card between such nodes" in unfolded(table([row], META, {}))
    row = row_of(fabric, None, "inter=400gbit", "intra=1GBps", time_us=2e5)
    assert row.bound_gbps == pytest.approx(7.0)


def test_a_table_says_what_is_possible_and_what_is_not() -> None:
    row = row_of(Fabric.REAL, None, "inter=4x10gbit", time_us=3000.0)
    text = unfolded(table([row], META, {}))
    assert "# bound: direct reaches 2.45 GB/s of 2.92 possible (83.9 %, declared) at 8 MiB\n" in text
    assert "# warning" not in text
    row = row_of(Fabric.REAL, None, "inter=10gbit", time_us=3000.0)
    assert (
        "# warning: direct at 8 MiB shows 336 % of the bound, above what the link rate allows: is link_rate right?\n"
        in unfolded(table([row], META, {}))
    )
    unbound = dataclasses.replace(
        row, bound_us=None, bound_gbps=None, bound_fraction=None, bound_kind="", steps_us=None
    )
    assert "no bound: no link rate is known (link_rate.inter=)" in unfolded(table([unbound], META, {}))


def test_in_words() -> None:
    assert yardstick.of_bound(41.04, 57, "nominal") == "41 GB/s of 57 possible (72 %, nominal)"
    assert yardstick.of_bound(41.04, 57, "") == "41 GB/s of 57 possible (72 %)"
    assert yardstick.above(1.019) == "" and "is link_rate right?" in yardstick.above(1.03)
    assert "NVLS or SHARP" in yardstick.above(1.9, "all_reduce")


def test_the_key_is_kept_in_run_json_and_makes_the_bound(tmp_path: Path) -> None:
    words = ("sweep", "quick", "transport=scripted", "layout=1x2", "launches=1", "sizes.list=1M", "algorithm=direct")
    result = here(*words, "link_rate.intra=2x50gbit", "--no-plots", "--format", "json", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "out")
    assert json.loads((run / "run.json").read_text())["link_rate"] == {"intra": "2x50gbit"}
    assert "link_rate:\n  intra: 2x50gbit\n" in (run / "config.yaml").read_text()
    line = json.loads(result.stdout.splitlines()[0])
    assert (line["bound_kind"], line["bound_gbps"]) == ("declared", pytest.approx(12.5))


@pytest.mark.parametrize("word", ["link_rate.inter=fast", "link_rate.inter=400Gbps", "link_rate.outer=1gbit"])
def test_a_bad_key_is_one_line_and_a_hint(word: str) -> None:
    with pytest.raises(UsageError, match=r"link_rate\."):
        prepare.configure(["quick", word])


def test_no_case_depends_on_the_rate() -> None:
    plain, rated = (planned(*WORDS, *more) for more in ((), ("link_rate.inter=400gbit",)))
    assert [case.case_id for case in plain] == [case.case_id for case in rated]


# Logs of other programs


def read_log(path: Path, text: str, **said: int) -> list[Result]:
    path.write_text(text)
    return formats.read(path, **said).results


PUBLISHED = [  # nodes, cards of a node, busbw at most; NVIDIA/nccl-tests#130 and the arithmetic of its PERFORMANCE.md
    (2, "8x400gbit", 93.75),
    (4, "8x400gbit", 64.58),
    (8, "8x400gbit", 56.25),
    (16, "8x400gbit", 52.92),
    (2, "4x200gbit", 23.44),
]


@pytest.mark.parametrize(("nodes", "cards", "ceiling"), PUBLISHED)
def test_a_log_has_the_published_ceiling(nodes: int, cards: str, ceiling: float, tmp_path: Path) -> None:
    """At the bound each card carries its own rate: busbw (n - m) / (n - 1), as busbw = algbw (n - 1) / n."""
    rates, n, size = parse_link_rates([f"inter={cards}"]), 8 * nodes, 1 << 30
    (result,) = read_log(tmp_path / "a2a.log", foreign_logs.nccl_tests(nodes, 8, [(size, size / 10e3)]))
    assert (result.nodes, result.ranks) == (nodes, n)
    least = bounds.of_result(result, rates)
    assert least is not None and least.kind == "declared"
    busbw = bounds.bound_gbps(result, least)
    assert busbw == pytest.approx(ceiling, rel=1e-3)
    assert size * (n - 8) / n / least.us / 1e3 == pytest.approx(rates["inter"].gbps / 8), (
        "bytes off the node, over time"
    )
    both = {**rates, **parse_link_rates(["intra=1GBps"])}
    assert bounds.bound_gbps(result, bounds.of_result(result, both)) == pytest.approx((n - 1) / 7)


@pytest.mark.parametrize(
    ("text", "said", "reason"),
    [
        (foreign_logs.nccl_tests(2, 2, [(4096, 10.0)], title="rccl"), {}, ""),
        (foreign_logs.nccl_tests(2, 2, [(4096, 10.0)], hosts=["a", "a", "a", "b"]), {}, "its nodes have 3, 1 ranks"),
        ((DATA / "osu-alltoall-full.txt").read_text(), {"ranks": 4}, "it does not say on how many nodes"),
        ((DATA / "osu-alltoall-full.txt").read_text(), {"ranks": 4, "nodes": 2}, ""),
    ],
)  # fmt: skip
def test_what_a_log_does_not_say_is_named(text: str, said: dict[str, int], reason: str, tmp_path: Path) -> None:
    results, rates = read_log(tmp_path / "log", text, **said), parse_link_rates(["inter=1gbit", "intra=1GBps"])
    assert bounds.missing(results, rates).startswith(reason) and bool(bounds.missing(results, rates)) == bool(reason)
    assert "--link-rate inter=" in bounds.missing(results, {})
    assert all((bounds.of_result(result, rates) is None) == bool(reason) for result in results)


def test_nodes_that_do_not_divide_the_ranks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="4 ranks do not divide by --nodes 3"):
        read_log(tmp_path / "log", (DATA / "osu-alltoall-full.txt").read_text(), ranks=4, nodes=3)


@pytest.mark.parametrize(
    ("collective", "even", "bytes_off"),
    [("all_to_allv", True, 1 / 2), ("all_to_allv", False, None), ("all_gather", False, 1 / 2), ("gather", False, 1 / 2),
     ("reduce_scatter", False, 1 / 2), ("all_reduce", False, 1), ("broadcast", False, 1), ("reduce", False, 1),
     ("sendrecv", False, 1 / 4), ("hypercube", False, None), (None, False, None)],
)  # fmt: skip
def test_each_collective_of_a_log_has_its_formula(collective: str | None, even: bool, bytes_off: float | None) -> None:
    """Of S = 8 MiB on 2 nodes of 4, in one direction of a node: all_to_all 4 ranks x S / 2; what is handed on once."""
    result = Result(source="s", collective=collective, ranks=8, size_bytes=8 << 20, dtype=None, op=None, root=None,
                    in_place=None, time_us=1.0, algbw_gbps=None, busbw_gbps=None, wrong=None, per_node=(4, 4),
                    even=even)  # fmt: skip
    least = bounds.of_result(result, parse_link_rates(["inter=1GBps"]))
    factor = 4 if collective in ("all_to_allv", "sendrecv") else 1
    assert (least.us if least else None) == (bytes_off and pytest.approx(bytes_off * factor * (8 << 20) / 1e3))


def test_logs_alone_are_drawn_and_answered(tmp_path: Path) -> None:
    points = [(1 << 20, 60.0), (64 << 20, 800.0)]
    (tmp_path / "a2a.log").write_text(foreign_logs.nccl_tests(2, 8, points))
    result = here("plot", "a2a.log", "--link-rate", "inter=8x400gbit", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    head, _, *lines = result.stdout.splitlines()
    assert head == "# a2a.log: all_to_all, nccl-tests 2.19.6, 2 nodes x 8 ranks, fp32"
    assert [line.split()[0] for line in lines[:2]] == ["1MiB", "64MiB"] and lines[1].split()[3:] == ["93.75", "84%"]
    assert lines[2] == "# answer: 78.6 GB/s of 93.7 possible (83.9 %, declared) at 64 MiB" and len(lines) == 4
    (svg,) = (tmp_path / "plots").glob("*.svg")
    assert "bound (declared)" in svg.read_text()
    low = here("plot", "a2a.log", "--link-rate", "inter=400gbit", "--out", "p", cwd=tmp_path).stdout
    assert low.splitlines()[-2].startswith(
        "# warning: 64 MiB shows 671 % of the bound, above what the link rate allows"
    )
    without = here("plot", "a2a.log", "--out", "p", cwd=tmp_path)
    assert without.returncode == 0 and "a2a.log: no bound: no link rate is declared: --link-rate" in without.stderr


def test_plot_and_compare_take_rates_for_runs_and_logs(tmp_path: Path) -> None:
    cases = planned("layout=1x2", "algorithm=direct", "launches=6", "sizes.list=1M")
    found = [dataclasses.replace(m, links=None) for m in measured(cases, lambda case: 100.0, noise=0.0, drift=0.0)]
    run, rows = folder(tmp_path, cases, found, 6)
    run.write_json("run.json", {"format_version": 4, **ABOUT})
    assert rows[0].bound_us is None
    told = Told(rates=parse_link_rates(["intra=10GBps"]))
    ours = compare.load(run.path, told)
    (item,) = compare.compare(ours, ours)
    assert (item.bound_us, item.bound_kind) == (pytest.approx((1 << 19) / 10e3), "declared")
    (tmp_path / "a2a.log").write_text(foreign_logs.nccl_tests(1, 2, [(1 << 20, 90.0)]))
    (item,) = compare.compare(ours, compare.load(tmp_path / "a2a.log", told))
    assert item.bound_us == pytest.approx((1 << 19) / 10e3)
    assert compare.compare(compare.load(run.path), compare.load(run.path))[0].bound_us is None
    combined = combine([run.path, tmp_path / "a2a.log"], told, FIGURE_KEYS, print)
    assert combined.rows["bound_kind"].tolist() == ["declared", "declared"]


def test_the_answer_of_a_sweep_says_how_near_it_comes() -> None:
    row = row_of(Fabric.REAL, None, "inter=4x10gbit", time_us=3000.0)
    possible = "2.45 GB/s of 2.92 possible (83.9 %, declared)"
    (said,) = answer([row], {}, META).sentences
    assert said.endswith(f"at 8 MiB, busbw {possible}")
    faster = dataclasses.replace(row, case_id="b", algorithm="bruck")
    same = {"speedup": 1.0, "speedup_low": 0.9, "speedup_high": 1.1, "speedup_p": 1.0}
    ratio = Speedup(baseline="direct", speedup_of="launches", pairs=6, **same)
    compared = {row.case_id: Speedup(baseline="direct"), "b": ratio}
    assert f"direct reaches {possible} at 8 MiB" in answer([row, faster], compared, META).sentences
    low = row_of(Fabric.REAL, None, "inter=10gbit", time_us=3000.0)
    assert any(
        "above what the link rate allows: is link_rate right?" in text for text in answer([low], {}, META).sentences
    )
    one = dataclasses.replace(row, collective="all_gather", case_id="c")
    assert (
        len(yardstick.sentences([row, one])) == 2
        and "all_gather over scripted, 4 nodes x 2 ranks: direct reaches" in (yardstick.sentences([row, one])[1])
    )


def test_the_guide_shows_what_the_command_prints() -> None:
    text = (REPOSITORY / "docs/guide/bound.md").read_text()
    shown = text.split("```\n")[1]
    (rate,) = (word for word in text.split("\n```")[0].split() if word.startswith("intra="))
    told = Told(rates=parse_link_rates([rate]))
    combined = combine([DATA / "nccl-tests-2.19-alltoall.txt"], told, FIGURE_KEYS, print)
    rows: list[dict[Any, Any]] = combined.rows.to_dict("records")
    assert yardstick.table(rows, [Path("nccl-tests-2.19-alltoall.txt")]) == shown
    for nodes, cards, ceiling in PUBLISHED[:2] + PUBLISHED[3:4]:
        assert cards == "8x400gbit" and f"| {nodes} | {ceiling} GB/s |" in text


@pytest.mark.parametrize(
    ("rate", "answer", "step"),
    [
        ("", "338 GB/s at 4 GiB; nobody has said what its links allow",
         "say what your links carry, as in: commbench plot a.log --link-rate intra=450GBps"),
        ("intra=400GBps", "338 GB/s of 400 possible (84.5 %, declared) at 4 GiB",
         "nothing to repair; compare a later log with it: commbench compare a.log LATER"),
        ("intra=18x26.5625GBps", "338 GB/s of 478 possible (70.7 %, declared) at 4 GiB",
         "try other algorithms and settings on that machine: commbench tune gpu --out p.json"),
        ("intra=900GBps", "338 GB/s of 900 possible (37.6 %, declared) at 4 GiB",
         "look for what is slow on that machine: commbench sweep pairs transport=nccl"),
        ("intra=300GBps", "338 GB/s of 300 possible (113 %, declared) at 4 GiB",
         "count links and cards on that machine: commbench topo"),
    ],
)  # fmt: skip
def test_a_log_ends_with_an_answer_and_the_next_step(rate: str, answer: str, step: str) -> None:
    told = Told(rates=parse_link_rates([rate] if rate else []))
    combined = combine([DATA / "nccl-tests-2.19-alltoall.txt"], told, FIGURE_KEYS, lambda text: None)
    rows: list[dict[Any, Any]] = combined.rows.to_dict("records")
    lines = yardstick.table(rows, [Path("a.log")]).splitlines()
    assert f"# answer: {answer}" in lines and lines[-1] == f"# next: {step}"


IMB = """# Intel(R) MPI Benchmarks 2021.7, MPI-1 part
# Benchmarking Alltoall
# #processes = 2
# ( 2 additional processes waiting in MPI_Barrier)
#bytes #repetitions  t_min[usec]  t_max[usec]  t_avg[usec]
 1048576           20       500.0       510.0       505.0

# Benchmarking Alltoall
# #processes = 4
#bytes #repetitions  t_min[usec]  t_max[usec]  t_avg[usec]
 1048576           20      9000.0      9100.0      9050.0
"""


def test_nodes_that_are_said_hold_for_the_largest_test_of_a_log(tmp_path: Path) -> None:
    """IMB runs each test on a part of the ranks first, and does not say where these are."""
    results, rates = read_log(tmp_path / "imb", IMB, nodes=2), parse_link_rates(["inter=10gbit"])
    assert [result.per_node for result in results] == [(), (2, 2)] and bounds.missing(results, rates) == ""
    found = [bounds.bound_gbps(result, bounds.of_result(result, rates)) for result in results]
    assert found == [None, pytest.approx(1.25 / 2 * 3 / 2)]
    assert combine([tmp_path / "imb"], Told(nodes=2, rates=rates), FIGURE_KEYS, print).rows["ranks"].tolist() == [4]
    with pytest.raises(UsageError, match="does not say how many nodes"):
        combine([tmp_path / "imb"], Told(rates=rates), FIGURE_KEYS, print)
