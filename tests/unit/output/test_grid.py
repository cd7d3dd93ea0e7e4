"""Tables fit: 100 characters at the most, and 80 where the terminal has no more; whatever rows there are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench.ab import answer as ab_answer
from commbench.analysis import ratios
from commbench.analysis.compare import CaseComparison
from commbench.analysis.ratios import Speedup
from commbench.analysis.summary import Samples
from commbench.commands import compare
from commbench.errors import UsageError
from commbench.output import grid
from commbench.output.grid import Column, TableStyle, folded
from commbench.output.table import table
from commbench.profile import Refused
from commbench.records import Case, Row, Status
from commbench.run_folder import RunFolder
from commbench.tune import describe
from commbench.tune.claims import Claim
from commbench.tune.confirmation import Control
from tests.support.fake_runs import META, measured, planned, rows_of
from tests.support.profiles import choice, profile

ALL = ("algorithm=direct,bruck,pairwise,2d_pipelined", "window=1,2", "chunks=16", "sizes.min=1K", "sizes.max=256M",
       "sizes.factor=512", "launches=6")  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {
    "all_to_all": ("nodes=2", "ranks_per_node=4", *ALL),
    "bindings": ("nodes=1", "ranks_per_node=4", "binding=none,block", "algorithm=direct", "launches=6"),
    "tp": ("nodes=2", "ranks_per_node=4", "collective=tp_all_to_all", "launches=6"),
    "all_reduce": ("nodes=1", "ranks_per_node=4", "collective=all_reduce", "op=sum", "launches=6"),
    "environments": ("nodes=1", "ranks_per_node=2", "env.GLOO_SOCKET_IFNAME=unset,lo", "launches=6"),
}


def of(kind: str, **more: Any) -> tuple[list[Row], dict[str, Speedup]]:
    cases = planned(*KINDS[kind])

    def rule(case: Case) -> float:
        return (12.3 + case.size_bytes / 100) * (0.7 if case.label.startswith("2d") else 1.0)

    found = measured(cases, rule, noise=0.03)
    rows = rows_of(cases, found, Samples(RunFolder(Path("/nowhere"))))
    compared = ratios.compare(cases, found, lambda measurement: np.empty(0))
    return [dataclasses.replace(row, **more) for row in rows], compared


def body(text: str) -> list[str]:
    """The headings and the rows."""
    return [line for line in text.splitlines() if not line.startswith("#") or {"size", "#size"} & set(line.split()[:2])]


@pytest.mark.parametrize("columns", [100, 80])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transport", ["gloo", "mpi", "nccl"])
def test_tables_of_all_kinds_fit(kind: str, transport: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    rows, compared = of(kind, transport=transport, comm_slowdown=1.5, compute_slowdown=1.2, overlap_percent=80.0)
    text = table(rows, META, compared)
    lines = [line for line in text.splitlines() if not line.startswith("# next: ")]
    assert max(map(len, lines)) <= columns
    headings, count = [""], 0
    for line in body(text):
        if line.startswith("#"):
            headings = line.lstrip("# ").split()
            assert headings[0] == "size" and "time_us" in headings and ("verdict" in headings or kind != "all_to_all")
        else:
            count += 1
            assert len(line.split()) == len(headings), "awk and pandas read it"
    assert count == len(rows)


def test_a_column_is_said_once_left_out_or_named() -> None:
    rows, compared = of("all_to_all")
    (header, *_), text = body(table(rows, META, compared)), table(rows, META, compared)
    assert "vs_direct" in header and "status" not in header and "host_us" not in header and "of_mean" not in header
    assert "no room for " not in text or "--columns all" in text
    alone = [row for row in rows if row.label == "direct"]
    assert "# algorithm: direct\n" in table(alone, META, {}) and "algorithm" not in body(table(alone, META, {}))[0]
    failed = [dataclasses.replace(rows[0], status=Status.TIMEOUT, time_us=None), *rows[1:]]
    assert body(table(failed, META, compared))[0].endswith("status")
    every = body(table(rows, META, compared, TableStyle(columns="all")))
    assert (
        every[0].split()[-3:] == ["samples", "stop", "status"]
        and len({len(line.lstrip("#").split()) for line in every}) == 1
    )
    two = body(table(rows, META, compared, TableStyle(columns="size,host_us")))
    assert two[0].lstrip("#").split() == ["size", "host_us"]
    with pytest.raises(UsageError, match="there is no column 'sizes'"):
        grid.check("size,sizes", ["size", "time_us"])


def test_markdown() -> None:
    lines = table(*_swapped("all_to_all"), TableStyle(markdown=True)).splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("| size "))
    assert lines[head - 1] == "" and lines[head + 1].startswith("|---:|---|")
    assert all(line.count("|") == lines[head].count("|") for line in lines[head : head + 10])
    odd: Column[str] = Column(name="a|b", text=lambda row: row, left=True)
    assert grid.grid([odd], ["x|y"], TableStyle(markdown=True)).lines == ["| a\\|b |", "|---|", "| x\\|y |"]


def _swapped(kind: str) -> tuple[list[Row], dict[str, Any], dict[str, Speedup]]:
    rows, compared = of(kind)
    return rows, META, compared


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0341, "0.03410"), (0.0, "0"), (22.5449, "22.54"), (123456.7, "123457"), (1e-7, "0.000000100"), (None, "-")],
)
def test_four_significant_digits(value: float | None, text: str) -> None:
    assert grid.number(value) == text


def test_intervals_are_as_exact_as_their_value() -> None:
    assert grid.interval(0.98765, 1012.3, 1000.4) == "[1-1012]"
    assert grid.interval(19.8123, 20.5432, 20.1) == "[19.81-20.54]" and grid.interval(None, 2.0) == "-"


@pytest.mark.parametrize("columns", [100, 80])
def test_tables_of_the_other_commands_fit(columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = "drop_gather_pipelined chunks=16"
    item = CaseComparison(
        label=long, set_up="tp_all_to_all tp=4, gloo, 2 nodes x 4 ranks, fp32, isolated", size_bytes=261_888,
        before_us=1_234_567.0, after_us=1_134_567.0, ratio=1.088, low=1.012, high=1.123, interval_of="launches",
        launches=(6, 6), p=0.01,
    )  # fmt: skip
    other = dataclasses.replace(item, size_bytes=8, interval_of="samples", p=None, ratio=0.5, low=0.45, high=0.55)
    slower = dataclasses.replace(other, size_bytes=16, interval_of="launches", p=0.001)
    text = compare.table([item, other, slower], tmp_path, tmp_path, 0.05)
    fits(text, columns, "worse,regressed")
    tuned = profile(choice("tp_all_to_all", "drop_gather_pipelined", params={"chunks": 16}), nodes=2, ranks_per_node=4,
                    env={"NCCL_MIN_P2P_NCHANNELS": "32"})  # fmt: skip
    tuned.refused.append(
        Refused(scope="s", collective="tp_all_to_all", label=long, sizes=[1], why="error", reason="no memory, " * 9)
    )
    control = Control(sizes=[Claim(ratio=1.0, low=0.99, high=1.01, p=0.5, pairs=10)])
    fits("\n".join(describe.table(tuned, [control])), columns, "gain")
    about = {"answer": "The candidate is faster.", "level": 0.05, "low": 1.1, "high": 1.2, "resolves": None,
             "control": None, "stopped": "rounds"}  # fmt: skip
    values = {"baseline": [1.23456e9] * 6, "candidate": []}
    names = dict.fromkeys(values, "as it is")
    fits("\n".join(ab_answer.table(about, values, names, "wall time in s")), columns, "launches")


def fits(text: str, columns: int, word: str) -> None:
    assert word in text and "  " in text
    assert max(map(len, text.splitlines())) <= columns, text


def test_comments_are_broken_between_phrases() -> None:
    phrase = "nothing here is about your network"
    lines = folded("; ".join([phrase] * 5))
    assert len(lines) == 3 and max(map(len, lines)) <= 100 and all(line.count(phrase) for line in lines)
    assert lines[1].startswith("#   nothing") and folded("short") == ["# short"]
