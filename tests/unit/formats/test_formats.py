"""Other programs' files: every layout they come in is read, and what we write in their layout is what they print."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench import collectives
from commbench.errors import UsageError
from commbench.formats import Result, nccl_tests, read
from commbench.formats.result import busbw_factor
from commbench.layout import Layout
from commbench.output import parquet
from commbench.output.foreign import beside
from commbench.output.nccl_tests import float_text, write
from commbench.plots.curves import curves
from commbench.plots.settings import FIGURE_KEYS
from commbench.records import Row, Status
from commbench.spec import Spec
from tests.conftest import REPOSITORY, environment

DATA = REPOSITORY / "tests/data/formats"
GOOD = (DATA / "nccl-tests-2.19-alltoall.txt").read_text()
JSON = (DATA / "nccl-tests-v3.json").read_text()
OSU = (DATA / "osu-alltoall-full.txt").read_text()
META = {
    "commbench_version": "1.0",
    "run_id": "r1",
    "machine_text": "a CPU",
    "started": "2026-03-01T12:00:00+00:00",
}


def values(result: Result, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(result, name) for name in names)


def row_text(size: int, count: int, time: str, algbw: str, busbw: str) -> str:
    half = f"  {time:>7}  {algbw:>6}  {busbw:>6}       0"
    return f"{size:12d}  {count:12d}     float     sum      -1{half}{half}\n"


# Reading nccl-tests


def test_nccl_tests_of_today() -> None:
    results = read(DATA / "nccl-tests-2.19-alltoall.txt").results
    assert len(results) == 6
    assert results[2] == Result(
        source="nccl-tests 2.19.6",
        collective="all_to_all",
        ranks=2,
        size_bytes=4194304,
        dtype="fp32",
        op=None,
        root=None,
        in_place=False,
        time_us=21.77,
        algbw_gbps=192.63,
        busbw_gbps=96.31,
        wrong=0,
        graph=False,
        per_node=(2,),
    )
    assert values(results[3], "in_place", "time_us", "busbw_gbps", "wrong") == (True, 20.64, 101.58, None)


def test_nccl_tests_of_old_tagged_by_mpirun_between_other_lines() -> None:
    results = read(DATA / "nccl-tests-old-mpirun.txt", ranks=99).results
    assert [values(r, "collective", "in_place", "time_us", "wrong") for r in results] == [
        ("all_reduce", False, 913.7, None),
        ("all_reduce", True, 912.4, None),
        ("all_reduce", False, 1712.5, 1),  # the asterisk
        ("all_reduce", True, 1709.9, None),
        ("broadcast", False, 806.1, None),
        ("broadcast", True, 805.0, None),
    ]
    assert {r.ranks for r in results} == {2}, "device lines know better than the caller"
    assert values(results[0], "op", "root") == ("sum", None)
    assert values(results[4], "op", "root") == (None, 1)


def test_nccl_tests_with_iteration_columns_timestamps_and_split_communicators() -> None:
    results = read(DATA / "nccl-tests-per-iteration.txt").results
    assert {values(r, "collective", "ranks", "dtype") for r in results} == {("reduce_scatter", 2, "bf16")}
    assert [values(r, "size_bytes", "op", "time_us", "busbw_gbps", "wrong") for r in results] == [
        (0, "sum", 0.31, 0.0, 0),
        (0, "sum", 0.30, 0.0, 0),
        (1048576, "max", 20.73, 25.29, 0),
        (1048576, "max", 22.13, 23.69, 3),
    ]


def test_each_test_in_a_file_stands_for_itself() -> None:
    today, old = GOOD, (DATA / "nccl-tests-old-mpirun.txt").read_text()
    half = "".join(GOOD.splitlines(keepends=True)[:12])  # it died
    results = nccl_tests.read_text(half + today).results
    assert [r.ranks for r in results] == [2] * 8
    results = nccl_tests.read_text(today + old).results
    assert {values(r, "source", "collective") for r in results[6:]} == {("nccl-tests", None)}
    results = nccl_tests.read_text(today.replace("# Using devices", "host0: all_reduce_perf\n# Using devices")).results
    assert {r.collective for r in results} == {"all_to_all"}, "the program's own word counts"


def test_a_cpu_time_is_not_taken_for_a_time() -> None:
    text = GOOD.replace("    time ", " cputime ")
    results = nccl_tests.read_text(text).results
    assert [r.time_us for r in results] == [None] * 6
    assert results[2].algbw_gbps == 192.63


def test_a_table_of_one_half() -> None:
    """RCCL's -O 0 measures in place only."""
    rows = """# nThread 1
#                                                         in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong
        1024           256     float     sum      -1    10.00    0.10    0.15      0
"""
    (result,) = nccl_tests.read_text(rows, ranks=4).results
    assert values(result, "in_place", "collective", "ranks", "time_us") == (True, None, 4, 10.0)
    (result,) = nccl_tests.read_text(rows.replace("in-place", "out-of-place"), ranks=4).results
    assert result.in_place is False


def test_sendrecv_has_no_operation() -> None:
    head = GOOD[: GOOD.index("        1024 ")].replace("alltoall_perf", "sendrecv_perf")
    text = head + row_text(1024, 256, "10.00", "0.10", "0.10")
    assert {values(r, "collective", "op") for r in nccl_tests.read_text(text).results} == {("sendrecv", None)}


PREFIXES = [
    "2026-03-01T10:15:30.123456789Z ", "nccl-1  | ", "[pod/nccl-0/main] ", "[default0]:", "(RayWorker pid=4100) ",
    "rank 0: ", "Mar  1 10:15:30 node-a launcher[12]: ", "\x1b[36m[0] \x1b[0m",
]  # fmt: skip


def test_nccl_tests_json() -> None:
    results = read(DATA / "nccl-tests-v3.json").results
    assert [values(r, "size_bytes", "in_place", "time_us", "busbw_gbps", "wrong") for r in results] == [
        (1048576, False, 22.96, 68.50455, 0),
        (1048576, True, 22.95, 68.5344, None),
        (2097152, True, None, 90.0, 0),
    ]
    # Two processes of two GPUs each, of which the first ones are listed.
    assert {values(r, "collective", "ranks", "dtype", "op", "root") for r in results} == {
        ("all_reduce", 4, "fp32", "sum", None)
    }
    assert "do-not-keep-this" not in repr(results)


def test_json_that_lists_every_device() -> None:
    raw = json.loads(JSON)
    devices = [{"rank": rank, "group": 0} for rank in range(4)]
    assert nccl_tests.read_json(json.dumps({**raw, "config": {**raw["config"], "devices": devices}}))[0].ranks == 4


# Reading OSU


def test_osu_with_all_columns() -> None:
    results = read(DATA / "osu-alltoall-full.txt", ranks=8).results
    assert [values(r, "size_bytes", "time_us", "wrong") for r in results] == [(8, 3.61, 0), (8388608, 2345.67, 1)]
    assert values(results[0], "source", "collective", "ranks", "dtype") == ("OSU 7.4", "all_to_all", 8, "int8")
    assert results[1].algbw_gbps == pytest.approx(8388608 / 2345.67e-6 / 1e9)
    assert results[1].busbw_gbps == pytest.approx(8388608 / 2345.67e-6 / 1e9 * 7 / 8)


def test_osu_sizes_are_made_ours() -> None:
    """By the call's arguments: one block of many, or a vector that all share."""
    results = read(DATA / "osu-several.txt", ranks=4).results
    assert [values(r, "source", "collective", "size_bytes", "dtype", "time_us") for r in results] == [
        ("OSU 7.4, non-blocking", "all_to_all", 16384, "int8", 15.0),
        ("OSU 7.4", "reduce_scatter", 4096, "fp32", 12.0),
        ("OSU 7.4", "reduce_scatter", 8192, "fp32", 16.0),
        ("OSU 7.4", "reduce_scatter", 4096, "int32", 13.0),
        ("OSU 5.9", "broadcast", 4096, None, 4.0),
        ("OSU 7.4, persistent", "all_gather", 16384, "int8", 8.0),
    ]


def test_factors_are_those_of_our_collectives() -> None:
    for name in (*collectives.EVERY, "pairs", "dispatch", "combine"):  # not of those that no other program measures
        collective = collectives.get(name)
        for ranks in (2, 3, 8):
            spec = Spec(collective=name, dtype="uint8", size_bytes=ranks * 16, layout=Layout(1, ranks))
            assert busbw_factor(name, ranks) == collective.busbw_factor(spec)
    assert busbw_factor("scan", 4) is None


# What cannot be read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello\n", "the format is unknown"),
        ("", "the format is unknown"),
        (GOOD.replace("    time ", "   clock "), "line 10: no column of times among size, count"),
        (GOOD[: GOOD.index("        1024 ")], "no results in it"),
        (JSON[:700], "line 13, column"),
        (JSON.replace('"nwrong"', '"wrong"'), "results[0]: 'nwrong' is missing"),
        (JSON.replace('"devices"', '"gpus"'), "config: 'devices' is missing"),
        (JSON.replace("22.960000", "[]"), "results[0]: "),
        ("{}", "args: 'args' is missing"),
        (OSU.replace("All-to-All Personalized Exchange", "Barrier"), "line 2: 'OSU MPI Barrier Latency Test v7.4' is"),
        (OSU.replace("Latency Test", "Bandwidth Test"), "line 2: 'OSU MPI All-to-All"),
        (OSU.replace("Avg Latency(us)", "Bandwidth (MB/s)"), "line 4: no column of times among Size, Bandwidth (MB/s)"),
    ],
)
def test_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "other.txt"
    path.write_text(text)
    with pytest.raises(UsageError) as raised:
        read(path, ranks=8)
    assert str(raised.value).startswith(f"{path}: ")
    assert said in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("nccl-tests-no-mpi.txt", "line 10: rank 0 is there twice (pid 544816 on node-a and pid 332597 on node-b)"),
        ("rccl-tests-two-worlds.txt", "line 23: rank 0 is there twice (pid 4100 on node-a and pid 4100 on node-b)"),
    ],
)
def test_worlds_that_ran_beside_each_other_are_not_read_as_one(file: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(DATA / file)
    assert said in str(raised.value)
    assert "MPI=1" in raised.value.hint


def without_devices(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "# Using devices" not in line and "  Rank " not in line)


TABLE = without_devices(GOOD)
ALL_REDUCE = TABLE[: TABLE.index("        1024 ")].replace("alltoall_perf", "all_reduce_perf")


@pytest.mark.parametrize(
    ("text", "ranks", "said"),
    [
        # Every process is a world of one rank: a row has as many elements as the size, where 2 ranks would share it.
        (TABLE.replace("           128 ", "           256 "), 2, "1024 B are 1 x 256 float, so of that many ranks"),
        (TABLE, 4, "1024 B are 2 x 128 float, so of that many ranks, and there are 4"),
        (GOOD.replace("       1024           128", "       1024           255"), None, "line 12: 1024 B are"),
        (GOOD.replace("Rank  1 Group", "Rank  2 Group"), None, "2 ranks are listed up to rank 2: rank 1 is missing"),
        (GOOD.replace("nGpus 2", "nGpus 4"), None, "2 ranks are listed, and each process says that it has 4"),
        (GOOD.replace("nGpus 2", "nGpus 1"), None, "pid 1001 on host0 is listed with 2 ranks, and each process says"),
        (GOOD.replace("192.63   96.31", "192.63  168.55"), None, "algbw 192.63 on 2 ranks is busbw 96.31, and 168.55"),
        (GOOD.replace("21.77  192.63", "31.77  192.63"), None, "4194304 B in 31.77 us are 132.02 GB/s, and the algbw"),
        (ALL_REDUCE + row_text(1024, 128, "10.00", "0.10", "0.10"), 2, "1024 B are not 128 float, which all_reduce"),
        # An all_reduce of worlds of one rank moves nothing: its count is right, and its busbw is 0.
        (ALL_REDUCE + row_text(1048576, 262144, "12.10", "86.66", "0.00"), 2, "is busbw 86.66, and 0.00 is given"),
        (JSON.replace('"rank": 2', '"rank": 0'), None, "config: rank 0 is there twice"),
        (JSON.replace('"rank": 2', '"rank": 3'), None, "config: ranks 0, 3 are listed, and each process says that it"),
        (JSON.replace('"count": 262144', '"count": 65536'), None, "results[0]: 1048576 B are not 65536 float"),
        (
            JSON.replace("45.669700", "55.669700"),
            None,
            "results[0]: 1048576 B in 22.96 us are 45.67 GB/s, and the algbw",
        ),
        (JSON.replace("68.504550", "0.0"), None, "results[0]: algbw 45.6697 on 4 ranks is busbw 68.50, and 0.0"),
    ],
)
def test_what_is_said_twice_must_agree(tmp_path: Path, text: str, ranks: int | None, said: str) -> None:
    path = tmp_path / "other.txt"
    path.write_text(text)
    with pytest.raises(UsageError) as raised:
        read(path, ranks)
    assert said in str(raised.value)


@pytest.mark.parametrize(("file", "count"), [("rccl-tests-cycles.txt", 8), ("rccl-tests-old.txt", 4)])
def test_rccl_tests_agree_with_themselves(file: str, count: int) -> None:
    assert len(read(DATA / file).results) == count


def test_osu_needs_to_be_told_the_ranks() -> None:
    with pytest.raises(UsageError) as raised:
        read(DATA / "osu-alltoall-full.txt")
    assert "--ranks" in raised.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read(tmp_path / "none.txt")


# Writing


def row(**changes: Any) -> Row:
    size = changes.setdefault("size_bytes", 1024)
    mean = changes.get("time_us_mean", 10.0)
    ok = changes.get("status", Status.OK) is Status.OK
    known: dict[str, Any] = {field.name: None for field in dataclasses.fields(Row)}
    known |= {
        "case_id": "c",
        "status": Status.OK,
        "reason": "",
        "collective": "all_to_all",
        "arguments": {},
        "in_place": False,
        "algorithm": "direct",
        "params": {},
        "transport": "gloo",
        "mode": "pipelined",
        "buffers": "plain",
        "cache": "warm",
        "dtype": "fp32",
        "ranks": 4,
        "nodes": 2,
        "groups": "world",
        "group_size": changes.get("ranks", 4),
        "overlap": "none",
        "fabric": "declared",
        "env": {},
        "binding": "none",
        "launches": 2,
        "samples": 40,
        "calls_per_sample": 20,
        "wrong": 0,
    }
    if ok:  # the slowest rank takes 1.2 times the mean
        algbw = size / (mean * 1.2) / 1e3
        factor = busbw_factor(changes.get("collective", "all_to_all"), changes.get("group_size") or 4) or 0.75
        known |= {"time_us": mean * 1.2, "time_us_mean": mean, "algbw_gbps": algbw, "busbw_gbps": algbw * factor}
        known |= {"time_us_low": mean * 1.1, "time_us_high": mean * 1.3, "interval_of": "launches"}
    return Row(**known | changes)


def test_the_layout_is_that_of_nccl_tests_to_the_character() -> None:
    real = [line for line in GOOD.splitlines() if "Rank" not in line]
    pairs = [
        *((1024, False, 13.06), (1024, True, 12.73), (4194304, False, 21.7739), (4194304, True, 20.6449)),
        *((4294967296, False, 6354.05), (4294967296, True, 5916.86)),
    ]
    rows = [
        row(
            size_bytes=size,
            in_place=in_place,
            time_us_mean=time_us,
            time_us=99.0,  # the slowest rank's, which must not show
            algbw_gbps=10.0,
            busbw_gbps=5.0,
            wrong=None if in_place else 0,
            ranks=2,
            nodes=1,
        )
        for size, in_place, time_us in pairs
    ]
    written = [line for line in write(rows, META).splitlines() if "Rank" not in line]
    start = real.index("# Using devices")
    table = real[start : real.index("# Out of bounds values : 0 OK") + 1]
    assert written[written.index("# Using devices") :][: len(table)] == table
    assert written[-4:] == real[-4:], "the footer, but for the average"
    average = next(line for line in written if "Avg bus bandwidth" in line)
    exact = [size / time_us / 1e3 / 2 for size, _, time_us in pairs]
    assert average == f"# Avg bus bandwidth    : {sum(exact) / 6:g} "
    assert written[4] == real[1]
    assert written[5].startswith("# nThread 1 nGpus 1 minBytes 1024 maxBytes 4294967296 step: ")


def test_written_tests_are_read_as_what_they_were() -> None:
    rows = [
        row(size_bytes=1024),
        row(size_bytes=4096, time_us_mean=11.0),
        row(size_bytes=4096, time_us_mean=12.0, in_place=True),
        row(size_bytes=1024, algorithm="pairwise", params={"window": 2}, time_us_mean=7.0),
        row(collective="all_reduce", arguments={"op": "max"}, dtype="bf16", time_us_mean=9.0),
        row(collective="broadcast", arguments={"root": 3}, dtype="fp16", transport="mpi", in_place=True),
        row(collective="all_gather", ranks=4, group_size=2, groups="rails", dtype="uint8"),
    ]
    results = nccl_tests.read_text(write(rows, META)).results
    names = ("source", "collective", "ranks", "size_bytes", "dtype", "op", "root", "in_place", "time_us", "wrong")
    direct = "commbench direct over gloo"
    assert [values(r, *names) for r in results] == [
        (direct, "all_to_all", 4, 1024, "fp32", None, None, False, 10.0, 0),
        (direct, "all_to_all", 4, 4096, "fp32", None, None, False, 11.0, 0),
        (direct, "all_to_all", 4, 4096, "fp32", None, None, True, 12.0, 0),
        ("commbench pairwise window=2 over gloo", "all_to_all", 4, 1024, "fp32", None, None, False, 7.0, 0),
        (direct, "all_reduce", 4, 1024, "bf16", "max", None, False, 9.0, 0),
        ("commbench direct over mpi", "broadcast", 4, 1024, "fp16", None, 3, True, 10.0, 0),
        (direct, "all_gather", 2, 1024, "uint8", None, None, False, 10.0, 0),
    ]
    assert results[1].busbw_gbps == pytest.approx(4096 / 11.0 / 1e3 * 0.75, abs=0.005)


@pytest.mark.parametrize(
    ("collective", "dtype", "count"),
    [
        ("all_to_all", "fp32", 64),
        ("all_to_allv", "fp32", 64),
        ("all_gather", "uint8", 256),
        ("reduce_scatter", "bf16", 128),
        ("all_reduce", "bf16", 512),
        ("broadcast", "fp32", 256),
        ("sendrecv", "fp16", 512),
    ],
)
def test_count_is_the_argument_of_the_call(collective: str, dtype: str, count: int) -> None:
    text = write([row(collective=collective, dtype=dtype)], META)
    (line,) = (line for line in text.splitlines() if not line.startswith("#") and line)
    assert line.split()[:2] == ["1024", str(count)]


def test_count_is_of_one_group() -> None:
    assert "\n        1024           128  " in write([row(groups="blocks:2", group_size=2)], META)
    assert "\n        1024            64  " in write([row(group_size=0)], META), "in runs that did not record it"


def test_a_half_that_was_not_measured_is_a_float_and_no_time() -> None:
    text = write([row(), row(size_bytes=2048, in_place=True)], META)
    first, second = (line for line in text.splitlines() if not line.startswith("#") and line)
    assert len(first) == len(second) == len(GOOD.splitlines()[11])
    assert [str(float(cell)) for cell in first.split()[9:12]] == ["nan"] * 3
    assert [str(float(cell)) for cell in second.split()[5:8]] == ["nan"] * 3
    assert len(first.split()) == len(second.split()) == 13


def test_a_case_without_numbers_is_a_comment() -> None:
    rows = [
        row(),
        row(size_bytes=2048, status=Status.WRONG_RESULT, reason="3 wrong\nelements", wrong=3),
        row(size_bytes=4096, status=Status.TIMEOUT, reason="60 s", in_place=True),
    ]
    text = write(rows, META)
    assert "# wrong_result: 2 KiB out of place: 3 wrong elements\n" in text
    assert "# timeout: 4 KiB in place: 60 s\n" in text
    assert "# Out of bounds values : 1 FAILED\n" in text
    assert [r.size_bytes for r in nccl_tests.read_text(text).results] == [1024]
    assert "# Avg bus bandwidth    : nan \n" in write(rows[1:], META)


def test_each_setting_is_a_test_of_its_own_and_says_what_it_is() -> None:
    variants: list[dict[str, Any]] = [
        {"algorithm": "bruck", "params": {"radix": 4}},
        {"transport": "mpi"},
        {"mode": "isolated"},
        {"buffers": "managed"},
        {"cache": "cold"},
        {"dtype": "bf16"},
        {"env": {"GLOO_DEVICE": "x"}},
        {"binding": "explicit", "cpu_masks": "0;1", "binding_memory": True},
        {"arguments": {"splits": "zipf", "alpha": 1.2}},
        {"groups": "blocks:2", "group_size": 2},
        {"overlap": "matmul"},
    ]
    text = write([row(), *(row(**variant) for variant in variants)], META)
    said = [line for line in text.splitlines() if line.startswith("# commbench: ")]
    assert text.count("Collective test starting: alltoall_perf") == len(variants) + 1 == len(said)
    assert said[0] == (
        "# commbench: direct over gloo, pipelined, plain buffers, warm cache, 2 nodes x 2 ranks, "
        "declared on one machine"
    )
    for words in (
        "bruck radix=4 over",
        "GLOO_DEVICE=x",
        "splits=zipf, alpha=1.2",
        "groups=blocks:2",
        "overlap=matmul",
        "explicit 0;1",
    ):
        assert any(words in line for line in said)


@pytest.mark.parametrize(
    ("sizes", "step"),
    [((64,), "0(bytes)"), ((64, 256, 1024), "4(factor)"), ((64, 96, 128), "32(bytes)"), ((64, 80, 200), "0(bytes)")],
)
def test_the_step_between_sizes(sizes: tuple[int, ...], step: str) -> None:
    text = write([row(size_bytes=size) for size in sizes], META)
    assert f"step: {step} warmup" in text


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [
        (13.06, 7, "  13.06"),
        (6354.05, 7, "6354.05"),
        (12355.13, 7, "12355.1"),
        (123456.7, 7, " 123457"),
        (9999999.4, 7, "9999999"),
        (12345678.0, 7, "1.2e+07"),
        (0.04, 6, "  0.04"),
        (999.99, 6, "999.99"),
        (999.996, 6, "1000.0"),
        (12345.6, 6, " 12346"),
        (1234567.0, 6, " 1e+06"),
        (float("nan"), 7, "    nan"),
    ],
)
def test_numbers_lose_decimals_then_go_exponential(value: float, width: int, text: str) -> None:
    assert float_text(value, width) == text


@given(value=st.floats(min_value=0, max_value=1e15), width=st.sampled_from([6, 7]))
def test_numbers_fill_their_column_with_as_many_digits_as_fit(value: float, width: int) -> None:
    text = float_text(value, width)
    assert len(text) == width
    decimals = len(text.partition(".")[2])
    if "e" in text:
        assert len(f"{value:.0f}") > width
        assert float(text) == pytest.approx(value, rel=0.5 if width == 6 else 0.05)
    else:
        assert abs(float(text) - value) <= 0.5 * 10**-decimals * (1 + 1e-9)
        assert decimals == 2 or len(f"{value:.{decimals + 1}f}") > width


@given(
    time_us=st.floats(min_value=0.01, max_value=1e9),
    parts=st.integers(min_value=1, max_value=2**30),
    both=st.booleans(),
)
def test_what_is_written_is_read_again(time_us: float, parts: int, both: bool) -> None:
    rows = [row(size_bytes=64 * parts, time_us_mean=time_us, in_place=place) for place in (False, True)[: 1 + both]]
    results = nccl_tests.read_text(write(rows, META)).results
    assert [r.in_place for r in results] == [r.in_place for r in rows]
    for result in results:
        assert result.size_bytes == 64 * parts
        assert result.time_us == pytest.approx(time_us, rel=0.05, abs=0.005)
        assert result.algbw_gbps == pytest.approx(64 * parts / time_us / 1e3, rel=0.5, abs=0.005)


# Beside ours


def ours(*rows: Row) -> pd.DataFrame:
    return parquet.frame(rows, "r1")


def result(**changes: Any) -> Result:
    known = {"source": "OSU 7.4", "collective": "all_to_all", "ranks": 4, "size_bytes": 1024, "dtype": "fp32"}
    known |= dict.fromkeys(["op", "root", "in_place", "algbw_gbps", "busbw_gbps", "wrong"]) | {"time_us": 5.0}
    return Result(**known | changes)


def test_results_join_the_figures_that_they_compare_with() -> None:
    frame = ours(row(mode="isolated"), row(), row(size_bytes=4096), row(dtype="bf16"), row(ranks=8), row(in_place=True))
    rows, left_out = beside([result(), result(ranks=16), result(collective=None)], "osu.txt", frame, FIGURE_KEYS)
    assert left_out == ["all_to_all on 16 ranks", "unnamed collective on 4 ranks"]
    assert rows[["mode", "dtype", "ranks"]].to_numpy().tolist() == [["isolated", "fp32", 4], ["pipelined", "fp32", 4]]
    assert set(rows["label"]) == {"OSU 7.4 (osu.txt)"}
    assert rows["algbw_gbps"].tolist() == [pytest.approx(1024 / 5.0 / 1e3)] * 2
    assert rows["busbw_gbps"].tolist() == [pytest.approx(1024 / 5.0 / 1e3 * 0.75)] * 2


@pytest.mark.parametrize(
    ("change", "asked", "compares"),
    [
        ({}, {}, True),
        ({"collective": "all_reduce", "op": "sum"}, {"collective": "all_reduce", "arguments": {"op": "sum"}}, True),
        ({"collective": "all_reduce", "op": "max"}, {"collective": "all_reduce", "arguments": {"op": "sum"}}, False),
        ({"collective": "all_reduce"}, {"collective": "all_reduce", "arguments": {"op": "sum"}}, True),
        ({"collective": "broadcast", "root": 1}, {"collective": "broadcast", "arguments": {"root": 0}}, False),
        ({"collective": "all_to_allv"}, {"collective": "all_to_allv", "arguments": {"splits": "zipf"}}, False),
        ({"in_place": True}, {}, False),
        ({"in_place": True}, {"in_place": True}, True),
        ({}, {"groups": "blocks:2"}, False),
        ({}, {"overlap": "matmul"}, False),
        ({}, {"status": Status.TIMEOUT}, False),
    ],
)
def test_only_equals_are_compared(change: dict[str, Any], asked: dict[str, Any], compares: bool) -> None:
    rows, left_out = beside([result(**change)], "f", ours(row(**asked)), FIGURE_KEYS)
    assert (len(rows), len(left_out)) == ((1, 0) if compares else (0, 1))


def test_what_differs_is_said() -> None:
    rows, _ = beside([result(dtype="int8")], "f", ours(row(dtype="bf16")), FIGURE_KEYS)
    assert rows["label"].tolist() == ["OSU 7.4, int8 (f)"]
    rows, left_out = beside([result(graph=True), result(graph=False)], "f", ours(row(mode="isolated")), FIGURE_KEYS)
    assert len(rows) == 1 and "in a graph" in left_out[0]
    rows, left_out = beside([result(in_place=True)], "f", ours(row()), FIGURE_KEYS)
    assert (len(rows), left_out) == (0, ["all_to_all in place on 4 ranks"])


def test_wrong_results_and_empty_messages_are_not_drawn() -> None:
    rows, left_out = beside([result(wrong=2), result(size_bytes=0)], "f", ours(row()), FIGURE_KEYS)
    assert (rows["status"].tolist(), left_out) == (["wrong_result"], [])


def test_curves_draw_them(tmp_path: Path) -> None:
    frame = ours(row(), row(size_bytes=4096), row(size_bytes=4096, mode="isolated"))
    more = [result(), result(size_bytes=8192), result(source="nccl-tests", time_us=None, busbw_gbps=0.2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows, _ = beside(more, "f", frame, FIGURE_KEYS)
        figures = curves(pd.concat([frame, rows], ignore_index=True), META)
        for name, figure in figures.items():
            figure.savefig(tmp_path / f"{name}.png")
    assert len(figures) == 2
    for figure in figures.values():
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == ["direct", "OSU 7.4 (f)", "nccl-tests (f)"]


def test_formats_import_neither_torch_nor_pandas() -> None:
    code = "import sys, commbench.formats, commbench.output.nccl_tests; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert not {"torch", "pandas", "matplotlib"} & set(out.stdout.split())
