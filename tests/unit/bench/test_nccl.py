"""The comparison with nccl-tests, run whole on programs that only pretend: it gets one go on a machine with GPUs."""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench import nccl, nccl_report
from tests.bench.nccl_report import KIB, MIB, MODES

SIZES = [KIB << 2 * k for k in range(12)]

# Both have a latency and a rate, and read what else they should do from plan.json beside them.
COMMON = """
import json, os, signal, sys, time
from pathlib import Path
HOME = Path(__file__).parent
PLAN = json.loads((HOME / "plan.json").read_text())
def log(name):
    with open(HOME / "order", "a") as file: file.write(name + "\\n")
    time.sleep(PLAN.get("seconds", 0))
    return sum(line.strip() == name for line in open(HOME / "order"))
def us(size, latency, gbps): return latency + size / 2 / gbps / 1e3
def sizes(low, high, factor):
    while low <= high:
        yield low
        low *= factor
"""

NCCL_TESTS = """
import argparse
parser = argparse.ArgumentParser()
for flag, default in (("t", 1), ("g", 0), ("n", 0), ("w", 0), ("c", 0), ("b", 0), ("e", 0), ("f", 0),
                      ("G", 0), ("R", 0), ("D", 0), ("x", 0)):
    parser.add_argument("-" + flag, type=int, default=default)
parser.add_argument("-d")
a = parser.parse_args()
assert (a.g, a.d, a.n, a.w, a.c) == (1, "float", 20, 5, 1), sys.argv
name = " ".join("-%s %d" % (flag, getattr(a, flag)) for flag in "RxDG" if getattr(a, flag)) or "default"
number = log("nccl-tests " + name)
if name in PLAN.get("refused", []):
    sys.exit("Device implementation 2 is not supported by this test")
if name in PLAN.get("ignored", []):
    print("Option -x (cta_policy) 2 is not supported before NCCL 2.28. Ignoring")
print("# nccl-tests version 2.19.6 nccl-headers=22809 nccl-library=22809")
print("# Collective test starting: alltoall_perf")
print("# nThread %d nGpus 1 minBytes %d maxBytes %d step: %d(factor) warmup iters: 5 iters: 20 agg iters: 1 "
      "validation: 1 graph: %d unalign: 0" % (a.t, a.b, a.e, a.f, a.G))
print("#\\n# Using devices")
for rank in range(a.t):
    print("#  Rank %2d Group  0 Pid   1342 on         vm device %2d [0000:00:06] NVIDIA H200" % (rank, rank))
print("#\\n#" + " " * 61 + "out-of-place" + " " * 23 + "in-place          ")
print("#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   "
      "busbw  #wrong ")
print("#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)")
latency, rate = PLAN["theirs"].get(name, PLAN["theirs"]["default"])
for index, size in enumerate(sizes(a.b, a.e, a.f)):
    time_us = us(size, latency, rate) * (1 + 0.01 * (number - 2))
    wrong = 7 if [name, size] == PLAN.get("wrong") else 0
    cells = "  %7.2f  %6.2f  %6.2f" % (time_us, size / time_us / 1e3, size / time_us / 2e3)
    print("%12d  %12d  %8s  %6s  %6s%s  %6g%s    N/A" % (size, size // 8, "float", "none", "-1", cells, wrong, cells))
    sys.stdout.flush()
    if name in PLAN.get("hangs", []) and index == 2:
        print("        65536          ", end="", flush=True)
        time.sleep(60)
print("# Out of bounds values : 0 OK\\n# Avg bus bandwidth    : 126.685 \\n#")
print("# Collective test concluded: alltoall_perf\\n#")
"""

COMMBENCH = """
words = dict(word.split("=") for word in sys.argv[3:] if "=" in word)
assert sys.argv[1:3] == ["sweep", "gpu"] and "--no-plots" in sys.argv and words["launches"] == "1", sys.argv
number = log("commbench cta" if "env.NCCL_CTA_POLICY" in words else "commbench")
out = Path(sys.argv[sys.argv.index("--out") + 1])
(out / f"run-{number}").mkdir(parents=True, exist_ok=True)
(out / f"run-{number}" / "run.json").write_text("{}")
env = {"NCCL_CTA_POLICY": "2"} if "env.NCCL_CTA_POLICY" in words else {}
print("measuring", file=sys.stderr)
for algorithm in words["algorithm"].split(","):
  for mode in words["mode"].split(","):
    for buffers in words["buffers"].split(","):
      for size in sizes(*(int(words["sizes." + key]) for key in ("min", "max", "factor"))):
        skipped = algorithm != "direct" and buffers != "symmetric"
        row = {"case_id": "0", "status": "skipped" if skipped else "ok", "reason": "", "algorithm": algorithm,
               "params": {}, "mode": mode, "buffers": buffers, "dtype": "fp32", "size_bytes": size, "env": env}
        row |= dict.fromkeys(("time_us", "time_us_mean", "host_us", "bound_gbps", "wrong", "busbw_gbps"))
        if skipped:
            row["reason"] = "needs symmetric buffers"
        else:
            way = f"{algorithm} {mode} {buffers}"
            time_us = us(size, *PLAN["ours"].get(way, PLAN["ours"].get(algorithm)))
            time_us *= 1 + 0.01 * (number - 2)
            row |= {"time_us": 1.5 * time_us, "time_us_mean": time_us, "host_us": 3.25, "bound_gbps": 408.0, "wrong": 0}
            if [way, size] == PLAN.get("out_of_memory"):
                row |= {"status": "out_of_memory", "reason": "4 GiB", "time_us": None, "time_us_mean": None}
        print(json.dumps(row), flush=True)
        if PLAN.get("interrupt") == [number, algorithm]:
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(60)
"""

PLAN: dict[str, Any] = {
    "theirs": {"default": [13, 337], "-G 20": [7, 363], "-R 1": [12.7, 363], "-R 1 -G 20": [7, 364],
               "-R 2 -D 2 -G 20": [5, 326], "-R 2 -x 2": [20, 390]},
    "ours": {"direct": [13, 337], "direct isolated plain": [1, 999], "direct graph registered": [7.1, 364],
             "symm_store": [20, 300], "symm_store graph symmetric": [5.05, 350],
             "symm_copy_engine": [20, 400]},
}  # fmt: skip


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The whole script on programs that pretend: its rows, summary, table and the order of what was run."""
    home = tmp_path / "programs"
    home.mkdir()
    perf = home / "alltoall_perf"
    perf.write_text(f"#!{sys.executable}\n{COMMON}{NCCL_TESTS}")
    perf.chmod(0o755)
    fake = home / "commbench.py"
    fake.write_text(COMMON + COMMBENCH)
    monkeypatch.setattr(nccl, "commbench_command", lambda words: [sys.executable, str(fake), "sweep", *words])
    monkeypatch.setattr(nccl, "gpu_names", lambda: ["NVIDIA H200"] * 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(*words: str, out: str = "out", **plan: Any) -> tuple[list[dict[str, Any]], dict[str, Any], str, list[str]]:
        (home / "plan.json").write_text(json.dumps(PLAN | plan))
        (home / "order").write_text("")
        folder = tmp_path / out
        assert nccl.main(["--nccl-tests", str(perf), "--out", str(folder), *words]) == 0
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        summary = json.loads((folder / "summary.json").read_text())
        return rows, summary, (folder / "table.md").read_text(), (home / "order").read_text().splitlines()

    return run


def gate(summary: dict[str, Any], *words: str) -> dict[str, Any]:
    (found,) = (gate for gate in summary["gates"] if all(word in gate["name"] for word in words))
    return dict(found)


def test_three_rounds(compare: Callable[..., Any], tmp_path: Path) -> None:
    rows, summary, table, order = compare("--nccl-lib", "/nowhere")
    once = ["commbench", "commbench cta", *(f"nccl-tests {mode}" for mode in MODES)]
    assert order == [*once, *reversed(once), *once]
    assert (summary["rounds"], summary["ranks"]) == (3, 2)
    assert [size["size_bytes"] for size in summary["sizes"]] == SIZES
    keys = [(row["tool"], row["way"], row["size_bytes"], row["round"]) for row in rows]
    assert len(keys) == len(set(keys)) == 3 * 12 * (3 * 9 + 2 + 8)

    # Latency decides at 1 KiB and copy engines at 4 GiB; an isolated time is no rival, however short.
    first, last = summary["sizes"][0], summary["sizes"][-1]
    assert first["best"]["ours"]["way"] == "symm_store graph symmetric"
    assert first["best"]["theirs"]["way"] == "-R 2 -D 2 -G 20"
    assert first["best"]["ratio"]["centre"] == pytest.approx(5 / 5.05, rel=1e-3)
    assert last["best"]["ours"]["way"].startswith("symm_copy_engine ")
    assert last["best"]["theirs"]["way"] == "-R 1 -G 20"
    assert last["best"]["ours"]["rounds"] == 3
    assert last["best"]["ours"]["min_us"] < last["best"]["ours"]["time_us"] < last["best"]["ours"]["max_us"]
    assert last["best"]["ours"]["busbw_gbps"] == pytest.approx(400, rel=6e-3)  # of the mean over ranks
    ratio = last["best"]["ratio"]
    assert [ratio[end] for end in ("centre", "low", "high")] == pytest.approx([400 / 364] * 3, rel=6e-3)
    assert (ratio["rounds"], ratio["of"]) == (3, "min..max over 3 rounds")
    assert last["of_ceiling"] == pytest.approx(0.98, rel=6e-3)
    assert last["against"]["-R 2 -x 2"]["centre"] == pytest.approx(400 / 390, rel=6e-3)
    assert last["like_for_like"]["default"]["ours"]["way"] == "direct pipelined plain"
    eager, graph = (first["alike"][mode] for mode in ("pipelined", "graph"))
    assert (eager["ours"]["way"], eager["theirs"]["way"]) == ("direct pipelined plain", "-R 1")
    assert eager["ratio"]["centre"] == pytest.approx(12.7 / 13, rel=1e-3)
    assert (graph["ours"], graph["theirs"]) == (first["best"]["ours"], first["best"]["theirs"])
    assert "symm_copy_engine pipelined symmetric" in table.split("## The best of each")[2].split("## Like")[0]

    assert gate(summary, "pipelined plain")["verdict"] == "PASS"
    assert gate(summary, "within 5 % of -R 1 -G 20")["verdict"] == "PASS"
    assert gate(summary, "within 5 % of -G 20")["figure"] == pytest.approx(1, abs=0.01)
    assert gate(summary, ">= 0.97x the best of default")["verdict"] == "PASS"
    assert gate(summary, ">= 1.04x the best of default")["verdict"] == "PASS"
    assert gate(summary, "1.03x the time")["verdict"] == "PASS"
    assert gate(summary, "1.03x the time")["figure"] == pytest.approx(1.01, abs=2e-3)
    assert gate(summary, ">= 1.04x the best of all modes,")["verdict"] == "FAIL"  # -x 2, which is no gate
    assert not gate(summary, ">= 1.04x the best of all modes,")["counts"]
    assert sum(each["counts"] for each in summary["gates"]) == 9

    assert "skipped: symm_store on plain buffers: needs symmetric buffers" in summary["notes"]
    assert any("nccl-library=22809" in line for line in summary["about"])
    assert "| 4 GiB | symm_copy_engine " in table and "3.25" in table and "**" in table
    with tarfile.open(tmp_path / "out/runs.tar.gz") as archive:
        assert "runs/run-3/run.json" in archive.getnames()
    text = (tmp_path / "out/output.txt").read_text()
    assert text.count("Collective test concluded") == 24 and text.count("measuring") == 6


def test_what_fails_does_not_stop_the_rest(compare: Callable[..., Any]) -> None:
    rows, summary, table, order = compare(
        *("-e", "64M", "--rounds", "3", "--timeout", "2", "--no-cta"),
        refused=["-R 2 -D 2 -G 20"],
        ignored=["-R 2 -x 2"],
        hangs=["-R 2"],
        wrong=["default", 16 * MIB],
        out_of_memory=["direct graph registered", 64 * MIB],
    )
    notes = "\n".join(summary["notes"])
    assert "-R 2 -D 2 -G 20: refused, exit code 1: Device implementation 2 is not supported by this test" in notes
    assert "-R 2 -x 2: refused: Option -x (cta_policy) 2 is not supported before NCCL 2.28. Ignoring" in notes
    assert "-R 2: cut off after 2 s, its limit; 3 results kept" in notes
    assert "wrong_result: default at 16 MiB" in notes
    assert "out_of_memory: direct graph registered at 64 MiB: 4 GiB" in notes
    # Refused twice, it is let be; what was ignored cannot change; what gave something is tried again.
    assert order.count("nccl-tests -R 2 -D 2 -G 20") == 2
    assert order.count("nccl-tests -R 2 -x 2") == 1
    assert order.count("nccl-tests -R 2") == 3
    assert {row["size_bytes"] for row in rows if row["way"] == "-R 2"} == set(SIZES[:3])
    assert not [row for row in rows if row["way"] == "-R 2 -x 2"]
    at = {size["size_bytes"]: size for size in summary["sizes"]}
    assert at[16 * MIB]["like_for_like"]["default"]["theirs"] is None
    assert at[64 * MIB]["like_for_like"]["-R 1 -G 20"]["ours"] is None
    assert gate(summary, "1.03x the time") == {
        "name": "best of ours at most 1.03x the time of -R 2 -D 2 -G 20, at 1 KiB",
        "verdict": "not measured",
        "figure": None,
        "text": "",
        "counts": True,
    }
    assert gate(summary, ">= 1.04x the best of default")["verdict"] == "not measured"
    assert "1 sizes not measured" in gate(summary, "within 5 % of -G 20, from 16 MiB")["text"]
    assert "not measured" in table


def test_the_budget_and_adding_up(compare: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "LEAST_S", 0.1)
    monkeypatch.setattr(nccl, "GRACE_S", 0.1)
    monkeypatch.setattr(nccl, "RESERVE_S", 0.0)
    words = ("-e", "4K", "--no-cta", "--modes=default,-R 1 -G 20")
    rows, summary, _, order = compare(*words, "--rounds", "50", "--seconds", "3", seconds=0.2)
    assert 1 <= summary["rounds"] < 50
    assert len(order) < 3 * 50 and order[:3] == ["commbench", "nccl-tests default", "nccl-tests -R 1 -G 20"]
    assert any("later ones not begun" in note for note in summary["notes"])

    first = str(tmp_path / "out/rows.jsonl")
    more, both, _, _ = compare(*words, "--rounds", "6", "--rows", first, out="more")
    assert both["rounds"] == summary["rounds"] + 6
    assert more[: len(rows)] == rows
    assert "95 % interval over" in both["sizes"][0]["best"]["ratio"]["of"]
    again, same, _, order = compare("--rounds", "0", "--rows", str(tmp_path / "more/rows.jsonl"), out="again")
    assert (again, order, same["gates"]) == (more, [], both["gates"])


def test_no_time_for_all_of_a_round(compare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "RESERVE_S", 0.0)
    monkeypatch.setattr(nccl, "LEAST_S", 1.0)
    monkeypatch.setattr(nccl, "GRACE_S", 0.1)
    rows, summary, _, order = compare("-e", "4K", "--seconds", "1.9", seconds=1.0)
    assert order == ["commbench"]
    assert {row["tool"] for row in rows} == {"commbench"}
    notes = "\n".join(summary["notes"])
    assert "round 1: no time left for commbench NCCL_CTA_POLICY=2, nccl-tests default, nccl-tests -G 20" in notes
    assert "round 2 and later ones not begun" in notes
    assert {each["verdict"] for each in summary["gates"]} == {"not measured"}


def test_ctrl_c_keeps_what_there_is(compare: Callable[..., Any]) -> None:
    rows, summary, _, order = compare("-e", "4K", "--modes=default", interrupt=[2, "direct"])
    # The second round goes backwards, and ends in the sweep that is interrupted at its first row.
    assert order == ["commbench", "commbench cta", "nccl-tests default", "nccl-tests default", "commbench cta"]
    assert "interrupted" in summary["notes"]
    assert summary["sizes"][0]["best"]["theirs"]["rounds"] == 2
    assert [row["env"] for row in rows if row["round"] == 2 and row["tool"] == "commbench"] == [
        {"NCCL_CTA_POLICY": "2"}
    ]


def test_nothing_works(compare: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        nccl, "commbench_command", lambda words: [sys.executable, "-c", "import sys; sys.exit('error: x')"]
    )
    (tmp_path / "out").mkdir()
    assert nccl.main(["--nccl-tests", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert "round 1: commbench all: refused, exit code 1: error: x" in summary["notes"]
    assert any("cannot be started" in note for note in summary["notes"])
    assert "round 3 and later ones not begun: nothing works" in summary["notes"]


def test_what_is_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(nccl, "gpu_names", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert nccl.main([]) == 2
    assert nccl.main(["--gpus", "2", "--modes=-R 3"]) == 2
    assert nccl.main(["--gpus", "2", "-b", "many"]) == 2
    assert "unknown mode '-R 3'" in capsys.readouterr().err


def test_words_of_the_sweeps() -> None:
    args = nccl.arguments(["--set", "mode=graph", "--set", "precision=0.05", "--cap", "0.2"])
    every, copies = (piece.command for piece in nccl.ours(args, 8, (KIB, MIB), Path("/runs")))
    assert every[1:5] == ["-m", "commbench", "sweep", "gpu"]
    for words in (every, copies):
        assert {"transport=nccl", "ranks_per_node=8", "launches=1", "cap=0.2", "precision=0.05"} < set(words)
        assert {"sizes.min=1024", "sizes.max=1048576", "sizes.factor=4"} < set(words)
    assert {"mode=graph", "algorithm=direct,symm_store,symm_copy_engine"} < set(every)
    assert {"mode=pipelined,graph", "buffers=symmetric", "env.NCCL_CTA_POLICY=2", "algorithm=direct"} < set(copies)


def test_ratios_are_paired_by_round() -> None:
    found = nccl_report.ratio({1: 20.0, 2: 44.0, 3: 9.0}, {1: 10.0, 2: 20.0, 4: 1.0})
    assert found is not None
    assert (found.rounds, found.low, found.high) == (2, 2.0, 2.2)
    assert found.centre == pytest.approx(4.4**0.5)
    assert nccl_report.ratio({1: 1.0}, {2: 1.0}) is None
