"""The same sweep over torch's gloo: every algorithm and dtype checked, the launchers, joining torchrun, kills."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from commbench import algorithms
from commbench.rank_info import RankInfo
from commbench.transports import gloo
from tests.conftest import (
    PATIENCE_S,
    cases_in,
    commbench,
    first,
    here,
    only_run,
    rows_of,
)
from tests.support import forked_command
from tests.support.everything import EVERYTHING, OF_EVERYTHING, check_everything
from tests.support.kill_and_resume import family, kill_and_resume
from tests.support.ranks import on_gloo

FEW = ("transport=gloo", "launches=1", "iters=3", "warmup=1", "--no-plots", "--format", "json")


@pytest.mark.parametrize("words", OF_EVERYTHING, ids="-".join)
def test_everything_is_right(tmp_path: Path, words: tuple[str, ...]) -> None:
    check_everything(here(*EVERYTHING, "transport=gloo", *words, cwd=tmp_path))


def test_every_operation_and_root(tmp_path: Path) -> None:
    words = (
        "collective=all_reduce,reduce_scatter,broadcast",
        "op=sum,prod,min,max",
        "root=0,1,3",
        "nodes=2",
        "dtype=int32,bf16,fp16",
    )
    result = here("sweep", "quick", *words, "in_place=false,true", *FEW, "-b", "1K", "-e", "1K", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {row["status"] for row in rows_of(result)} == {"ok"} and len(rows_of(result)) == 66


@pytest.mark.parametrize("groups", ["rails", "blocks:2", "blocks:3"])
def test_groups_do_it_at_the_same_time_with_data_of_their_own(tmp_path: Path, groups: str) -> None:
    words = ("collective=all", "algorithm=all", "nodes=2", "ranks_per_node=3", f"groups={groups}")
    result = here("sweep", "quick", *words, *FEW, "-b", "1K", "-e", "1K", cwd=tmp_path)
    if groups == "blocks:2":
        assert result.returncode == 2
        assert "hint: blocks:2: groups of 2 would cut nodes of 3 ranks unevenly" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    rows = rows_of(result)
    size = {"rails": 2, "blocks:3": 3}[groups]
    ok = [row for row in rows if row["status"] == "ok"]
    assert len({row["collective"] for row in ok}) == 7 and {row["group_size"] for row in ok} == {size}
    direct = next(row for row in ok if (row["collective"], row["algorithm"]) == ("all_to_all", "direct"))
    sent = 6 * direct["size_bytes"] * (size - 1) // size  # six ranks, each all but its own part
    assert (direct["inter_bytes"], direct["intra_bytes"]) == ((sent, 0) if groups == "rails" else (0, sent))
    assert direct["busbw_gbps"] == pytest.approx(direct["algbw_gbps"] * (size - 1) / size)


def test_a_product_beside_the_collective(tmp_path: Path) -> None:
    words = ("algorithm=direct", "overlap=none,matmul", "nodes=1", "ranks_per_node=2")
    result = here("sweep", "quick", *words, *FEW, "-b", "64K", "-e", "64K", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    alone, beside = sorted(rows_of(result), key=lambda row: row["overlap"] != "none")
    assert alone["comm_alone_us"] is None and alone["overlap_percent"] is None
    assert min(beside[name] for name in ("comm_alone_us", "compute_alone_us", "compute_beside_us")) > 0
    assert beside["comm_slowdown"] > 0 and beside["compute_slowdown"] > 0
    assert 0 <= beside["overlap_percent"] <= 100


def test_cold_buffers_and_pipelined_calls(tmp_path: Path) -> None:
    words = ("cache=cold", "mode=isolated,pipelined", "nodes=2", "-b", "64K", "-e", "64K")
    result = here("sweep", "quick", *words, *FEW, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "results")
    measured = [json.loads(line) for line in (run / "measurements.jsonl").read_text().splitlines()]
    assert len(measured) == 8 and min(line["buffer_pairs"] for line in measured) > 1
    planned = map(json.loads, (run / "plan.jsonl").read_text().splitlines())
    modes = {item["case_id"]: item["case"]["mode"] for item in planned}
    calls = {(modes[line["case_id"]], line["calls_per_sample"] > 1) for line in measured}
    assert calls == {("isolated", False), ("pipelined", True)}


def test_torchrun_as_a_subprocess_and_joined_give_the_same_cases(tmp_path: Path) -> None:
    words = ("quick", "algorithm=direct,bruck", "-e", "1K", *FEW)
    child = commbench("sweep", *words, "nodes=1", "ranks_per_node=2", "--launcher", "torchrun", cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    joined = forked_command.torchrun(2, "sweep", *words, cwd=tmp_path)
    assert joined.returncode == 0, joined.stderr
    local = here("sweep", *words, "nodes=1", "ranks_per_node=2", "--dry-run", cwd=tmp_path)
    keys = [{(row["case_id"], row["status"]) for row in rows_of(result)} for result in (child, joined)]
    assert keys[0] == keys[1] == {(item["case_id"], "ok") for item in rows_of(local)} and len(keys[0]) == 2


@pytest.mark.parametrize(
    "case",
    first(
        2,
        [
            (("ranks_per_node=3",), "torchrun started 2 ranks, but nodes x ranks_per_node is 1 x 3"),
            (("algorithm=nope",), "unknown algorithm 'nope'"),
            (("env.A=1,2",), "2 set-ups were asked for"),
            (("transport=scripted",), "does not run under --launcher torchrun"),
        ],
    ),
)
def test_joining_with_the_wrong_words_says_so_once(tmp_path: Path, case: tuple[tuple[str, ...], str]) -> None:
    words, message = case
    result = forked_command.torchrun(2, "sweep", "quick", *words, cwd=tmp_path)
    assert result.returncode != 0
    assert result.stderr.count("\nerror: ") + result.stderr.startswith("error: ") == 1, result.stderr
    assert message in result.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_keeps_what_it_has_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    words = ("sweep", "quick", "transport=gloo", "nodes=2", "launches=2", "-f", "8", "-e", "8K", "--no-plots")
    sweep = forked_command.start(*words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while not list(tmp_path.glob("results/*/measurements.jsonl")):
        assert time.monotonic() < deadline, "nothing was measured"
        time.sleep(0.05)
    sweep.send_signal(number)
    _, error = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 130, error
    run = only_run(tmp_path / "results")
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert f"commbench sweep --resume results/{run.name}" in error
    assert "Traceback" not in error
    assert not family(run.name), "ranks are left"
    resumed = here("sweep", "--resume", str(run), "--format", "json", "--no-plots", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert {row["status"] for row in rows_of(resumed)} == {"ok"}


def test_a_size_beyond_memory_ends_alone(tmp_path: Path) -> None:
    words = ("algorithm=direct", "nodes=2", "-b", "1K", "-e", "64G", "-f", "67108864", *FEW)
    result = here("sweep", "quick", *words, cwd=tmp_path)
    assert result.returncode == 1
    small, large = sorted(rows_of(result), key=lambda row: row["size_bytes"])
    assert small["status"] == "ok"
    assert large["status"] == "out_of_memory" and "available" in large["reason"]


@pytest.mark.parametrize("seed", first(1, [1, 2]))
def test_kill_and_resume(tmp_path: Path, seed: int) -> None:
    words = ["quick", "transport=gloo", "nodes=2", "launches=2", "iters=3", "-e", "8K", "-f", "8"]
    kill_and_resume(seed, tmp_path / "out", words, longest_s=6.0)


def test_subgroups_of_subgroups(tmp_path: Path) -> None:
    """Only the members of a group create it."""

    def rank(transport: Any) -> list[int]:
        import torch

        half = transport.world.subgroup([[0, 1], [2, 3]])
        alone = half.subgroup([[0], [1]])
        inp, out = torch.full((2,), transport.rank, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
        half.all_to_all(out, inp, step="x").wait()
        return [half.rank, half.size, alone.rank, alone.size, *out.tolist()]

    assert on_gloo(4, rank) == [0, 2, 0, 1, 0, 1]


# Joined launches that fail: what was measured is shown, and the exit code is 1


def rank_while_measuring(cwd: Path, rank: int) -> int:
    """The pid of a rank, once the second case has begun: between two cases nothing is measured that could fail."""
    deadline = time.monotonic() + PATIENCE_S
    while sum(path.read_text().count('"begin"') for path in cwd.glob("results/2*/logs/*/events.jsonl")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (description,) = cwd.glob(f"results/2*/logs/*/rank-{rank}.json")
    return int(json.loads(description.read_text())["pid"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, "error"), (signal.SIGSTOP, "timeout")])
def test_a_rank_lost_from_a_joined_launch(tmp_path: Path, number: signal.Signals, status: str) -> None:
    words = ("algorithm=direct", "cap=1", "precision=0", "samples.max=100000", "timeout=5")
    launch = forked_command.start_torchrun(
        2, "sweep", "quick", *words, "--format", "json", "--no-plots", cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    victim = rank_while_measuring(tmp_path, 1)
    os.kill(victim, number)
    if number == signal.SIGSTOP:  # torchrun would wait 30 s for it to end by itself
        other = psutil.Process(rank_while_measuring(tmp_path, 0))
        deadline = time.monotonic() + PATIENCE_S
        with contextlib.suppress(psutil.NoSuchProcess):
            while other.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        os.kill(victim, signal.SIGKILL)
    out, error = launch.communicate(timeout=PATIENCE_S)
    assert launch.returncode != 0
    rows = cases_in(out)
    # The launcher may be quicker to stop rank 0 than rank 0 to notice: then the case was interrupted.
    assert {row["status"] for row in rows} - {"interrupted"} in ({"ok", status}, {"ok"}), error
    assert len({row["status"] for row in rows}) == 2, error
    run = only_run(tmp_path / "results")
    stopped_first = "interrupted" in {row["status"] for row in rows}
    ends = {"incomplete", "interrupted"} if stopped_first else {"incomplete"}
    assert json.loads((run / "run.json").read_text())["status"] in ends
    assert not family(run.name)
    refused = here("sweep", "--resume", str(run), cwd=tmp_path)
    assert refused.returncode == 2 and "torchrun" in refused.stderr


def test_torchrun_names_the_rank_that_was_lost_as_such(tmp_path: Path) -> None:
    sweep = forked_command.start(
        "sweep", "quick", "--launcher", "torchrun", "layout=1x2", "launches=1", "cap=1", "-f", "8", "precision=0",
        "samples.max=100000", "algorithm=direct", "-e", "8K", "--format", "json", "--no-plots",
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.kill(rank_while_measuring(tmp_path, 1), signal.SIGKILL)
    out, error = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 1, error
    rows = cases_in(out)
    assert sorted(row["status"] for row in rows) == ["error", "ok"], error
    (reason,) = (row["reason"] for row in rows if row["status"] == "error")
    assert "rank 1 was killed by signal 9" in reason or "lost another rank" in reason


@pytest.mark.parametrize("lie", [True, False])
def test_a_message_that_is_not_declared_is_noticed(lie: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are forked from this process, with the algorithm as it is here."""
    algorithm = algorithms.get("all_to_all", "2d_intra_first")
    honest = algorithm.steps
    if lie:
        monkeypatch.setattr(algorithm, "steps", lambda spec: (honest(spec) or [])[:1], raising=False)
    words = ("sweep", "quick", "transport=gloo", "nodes=2", "algorithm=2d_intra_first", "-b", "4K", "-e", "4K")
    result = here(*words, "launches=1", "iters=2", "--no-plots", "--format", "json", cwd=tmp_path)
    (row,) = rows_of(result)
    assert row["status"] == ("declaration_mismatch" if lie else "ok"), row["reason"]


@pytest.mark.parametrize("others", [False, True])
def test_the_store_listens_where_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool) -> None:
    """At one address: this machine's own where all ranks are here, else that of its name. Torch would take all."""
    monkeypatch.setattr(socket, "gethostname", lambda: "127.0.0.2")
    info = RankInfo(rank=0, size=2, local_rank=0, local_size=1 if others else 2, launcher="slurm")
    store = gloo.meet_at(tmp_path / "address", info)
    host, port = json.loads((tmp_path / "address").read_text())
    listening = {
        address
        for line in [*Path("/proc/net/tcp").read_text().splitlines(), *Path("/proc/net/tcp6").read_text().splitlines()]
        if (fields := line.split())[3] == "0A"
        for address, number in [fields[1].split(":")]
        if int(number, 16) == port
    }
    assert (host, listening) == (("127.0.0.2", {"00000000"}) if others else ("127.0.0.1", {"0100007F"}))
    assert stat.S_IMODE((tmp_path / "address").stat().st_mode) == 0o600
    other = gloo.meet_at(tmp_path / "address", replace(info, rank=1))
    other.set("a", "b")
    assert store.get("a") == b"b"
