"""Logs as people have them: what stands before lines, lines of other origin, and formats of neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commbench.errors import UsageError
from commbench.formats import Log, nccl_tests, osu, read
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "tests/data/formats"
GOOD = (DATA / "nccl-tests-2.19-alltoall.txt").read_text()
HEAD = GOOD[: GOOD.index("        1024 ")]
OSU = (DATA / "osu-alltoall-full.txt").read_text()
CSV = """numCycle,collective,nodes,ranks,ranksPerNode,gpusPerRank,size,type,redop,inPlace,time,algBw,busBw,#wrong
0,"AlltoAll",1,8,8,1,1048576,"float","none",0,40.1,26.15,22.88,"0"
0,"AlltoAll",1,8,8,1,1048576,"float","none",1,39.2,26.75,23.41,"N/A"
"""
IMB_COLUMNS = "bytes #repetitions t_min[usec] t_max[usec] t_avg[usec]"
IMB = f"""#    Intel(R) MPI Benchmarks 2021.3, MPI-1 part
# MPI_Datatype                   :   MPI_BYTE
# MPI_Datatype for reductions    :   MPI_FLOAT
# Benchmarking Alltoall
# #processes = 4
# ( 4 additional processes waiting in MPI_Barrier)
       #{IMB_COLUMNS} defects
         1024         1000         5.00         6.00         5.50         0.00
         2048         1000         7.00         8.00         7.50         0.00
         4096         out-of-mem.
# Benchmarking Allreduce
# #processes = 4
       #{IMB_COLUMNS}
         1024         1000         8.00        10.00         9.00
"""


def read_as(tmp_path: Path, text: str) -> Log:
    path = tmp_path / "log"
    path.write_text(text)
    return read(path, ranks=8)


PREFIXES = [
    "2026-03-01T10:15:30.123456789Z ", "nccl-1  | ", "[pod/nccl-0/main] ", "[default0]:", "(RayWorker pid=4100) ",
    "rank 0: ", "Mar  1 10:15:30 node-a launcher[12]: ", "\x1b[36m[0] \x1b[0m", "[1,0]<stdout>:", "[0] ", "0: ",
    "host-1.example: ", "[prterun-h-1@1,0]<stdout>: ",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_a_launcher_puts_before_lines(prefix: str) -> None:
    tagged = "\n".join(prefix + line for line in GOOD.splitlines())
    assert nccl_tests.read_text(tagged) == nccl_tests.read_text(GOOD)
    trimmed = "\n".join(line.rstrip() for line in tagged.splitlines())
    assert nccl_tests.read_text(trimmed) == nccl_tests.read_text(GOOD)
    assert osu.read_text("\n".join(prefix + line for line in OSU.splitlines()), 8) == osu.read_text(OSU, 8)


def test_a_prefix_whose_numbers_change_from_line_to_line() -> None:
    tagged = "\n".join(f"2026-03-01T10:15:{n:02}.{n**9}Z {line}" for n, line in enumerate(GOOD.splitlines(), start=7))
    assert nccl_tests.read_text(tagged) == nccl_tests.read_text(GOOD)


def test_colours_and_the_escapes_of_forums() -> None:
    coloured = "\n".join(f"\x1b[32m{line}\x1b[0m" for line in GOOD.splitlines())
    escaped = GOOD.replace("#", "\\#").replace("_", "\\_")
    assert nccl_tests.read_text(coloured) == nccl_tests.read_text(escaped) == nccl_tests.read_text(GOOD)


BODY = GOOD[: GOOD.index("# Out of bounds")]
ROW = "  1024  128  float  none  -1  10.00  0.10  0.05  0  10.00  0.10  0.05  N/A"
ODD = [
    (BODY + "     8388608        1048576     float\n", 6, ": 3 values where nccl-tests prints a row of 13"),
    (GOOD.replace("20.64  203.16", "20.64"), 4, "line 13: 12 values where nccl-tests prints a row of 13"),
    (GOOD.replace("192.63", "192,63"), 4, "line 13: could not convert string to float: '192,63'"),
    (GOOD.replace("  101.58    N/A", "  101.58    N/A  RING  LL128  56"), 6, ""),
    (f"{HEAD}           0             0     float    none      -1     SKIP    0.00    0.00    N/A\n{ROW}\n", 2,
     "line 12: 9 values"),
    (OSU + "[a:50816:0:50816] Caught signal 7\n 0 0x000000000005ae3c ucs_callbackq_cleanup()  ???:0\n", 2,
     "line 9: 4 values where OSU prints a row of 8"),
    ("2026-03-01 10:15:30 starting\n" + OSU + "2026-03-01 10:16:30 finished\n", 2, "line 9: 3 values"),
    (OSU + "\nreal\t0m12.345s\n12.34user 0.10system 0:12.60elapsed 98%CPU\n", 2, "line 10: 4 values"),
    ("# OSU MPI Latency Test v7.4\n# Size       Avg Latency(us)\n1 2.0\n" + OSU, 2,
     "line 1: 'OSU MPI Latency Test v7.4' is not an OSU test that can be compared"),
    (OSU.replace("2345.67 ", ""), 1, "line 6: 7 values where OSU prints a row of 8"),
    (OSU.replace("2345.67", "fast   "), 1, "line 6: could not convert"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "count", "said"), ODD, ids=range(len(ODD)))
def test_odd_lines_are_passed_over_and_counted(tmp_path: Path, text: str, count: int, said: str) -> None:
    log = read_as(tmp_path, text)
    assert len(log.results) == count
    assert log.note.startswith("passed over 1 line: ") and said in log.note if said else log.note == ""


def test_a_note_names_three_lines_and_counts_the_others(tmp_path: Path) -> None:
    note = read_as(tmp_path, BODY + "1 2 3\n" * 5).note
    assert note.startswith("passed over 5 lines: ") and note.count("line ") == 3 and note.endswith("; and 2 more")


def test_a_failed_check_of_an_old_version_is_in_its_last_line() -> None:
    text = (DATA / "rccl-tests-old.txt").read_text()

    def wrong(text: str) -> list[int | None]:
        return [result.wrong for result in nccl_tests.read_text(text).results]

    assert wrong(text) == [None, None, None, 1]
    assert wrong(text.replace("1e+00", "0e+00")) == [1] * 4  # no row can be blamed, so none is trusted
    assert wrong(text.replace("1 FAILED", "0 OK")) == [None] * 4


def test_rccl_is_called_rccl() -> None:
    sources = [{r.source for r in read(DATA / f"rccl-tests-{name}.txt").results} for name in ("old", "cycles")]
    assert sources == [{"rccl-tests"}, {"rccl-tests develop:0a1b2c3"}]


@pytest.mark.parametrize(
    ("text", "between"), [("[\n%s\n]\n", ",\n"), ("%s\n", "\n")], ids=["a list", "an object a line"]
)
def test_rccl_tests_json(tmp_path: Path, text: str, between: str) -> None:
    half = {"algBw": 26.149, "busBw": 22.880, "collective": "AlltoAll", "ranks": 8, "redop": "none", "type": "float"}
    rows = [half | {"size": 1 << 20, "time": 40.1, "#wrong": "0N/A"[n : 3 * n + 1], "inPlace": n} for n in (0, 1)]
    whole = text % between.join(map(json.dumps, rows))
    found = read_as(tmp_path, whole).results
    assert {(r.source, r.collective, r.ranks, r.dtype, r.op) for r in found} == {
        ("rccl-tests", "all_to_all", 8, "fp32", None)
    }
    assert [(r.in_place, r.wrong, r.time_us) for r in found] == [(False, 0, 40.1), (True, None, 40.1)]
    cut = read_as(tmp_path, whole[: whole.rindex('"time"')])
    assert len(cut.results) == 1 and cut.note.startswith("passed over 1 line: line ")


def test_rccl_tests_csv(tmp_path: Path) -> None:
    found = read_as(tmp_path, CSV).results
    assert [(r.collective, r.ranks, r.size_bytes, r.time_us, r.in_place, r.wrong) for r in found] == [
        ("all_to_all", 8, 1 << 20, 40.1, False, 0),
        ("all_to_all", 8, 1 << 20, 39.2, True, None),
    ]


def test_imb(tmp_path: Path) -> None:
    """Sizes are one block for each rank, or the vector that all share; times are the mean over ranks."""
    log = read_as(tmp_path, IMB)
    assert [(r.source, r.collective, r.ranks, r.size_bytes, r.dtype, r.time_us, r.wrong) for r in log.results] == [
        ("IMB 2021.3", "all_to_all", 4, 4096, "uint8", 5.5, 0),
        ("IMB 2021.3", "all_to_all", 4, 8192, "uint8", 7.5, 0),
        ("IMB 2021.3", "all_reduce", 4, 1024, "fp32", 9.0, None),
    ]
    assert log.results[2].busbw_gbps == pytest.approx(1024 / 9.0 / 1e3 * 1.5)
    assert log.note == "passed over 1 line: line 10: 2 values of 4 ranks where IMB prints bytes #repetitions" + (
        " t_min[usec] t_max[usec] t_avg[usec] defects"
    )


WRONG = [
    (HEAD + "  1048576  131072  float\n", "line 12: 3 values where nccl-tests prints a row of 13"),
    (CSV.replace(",size,", ",bytes,"), "line 2: 'size' is missing"),
    (CSV.replace("22.88", "99.9").replace("23.41", "99.9"), "line 2: algbw 26.15 on 8 ranks is busbw 22.88"),
    (IMB.replace("t_avg[usec]", "t_mid"), "no column of times among bytes, #repetitions"),
    (IMB.replace("Alltoall", "PingPong").replace("Allreduce", "PingPing"), "line 4: PingPong is not a collective"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[case[1][:20] for case in WRONG])
def test_where_nothing_can_be_read_there_is_one_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_as(tmp_path, text)
    assert said in str(raised.value) and raised.value.hint
