"""On two GPUs or more: every way gives the right result, and what goes wrong ends its own case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commbench import transports
from commbench.machine import gpus
from commbench.measure.case import NOT_CAPTURABLE
from tests.bench import stress
from tests.conftest import cases_in, environment, here, only_run
from tests.support.kill_and_resume import family

if gpus.count(os.environ) < 2:
    pytest.skip("needs two GPUs", allow_module_level=True)
if reason := transports.missing("nccl"):
    pytest.skip(reason, allow_module_level=True)

QUICK = ("launches=1", "iters=3", "warmup=1", "--no-plots", "--format", "json")


def rows(text: str) -> list[dict]:
    return cases_in(text)


def told(found: list[dict]) -> str:
    """Of the failed cases, what tells them apart."""
    keys = ("status", "reason", "collective", "algorithm", "params", "mode", "buffers", "dtype", "size_bytes", "wrong")
    return "\n".join(
        str({key: row.get(key) for key in keys}) for row in found if row["status"] not in ("ok", "skipped")
    )


def swept(tmp_path: Path, *words: str, code: int = 0) -> list[dict]:
    result = here("sweep", "gpu", *words, *QUICK, cwd=tmp_path)
    assert result.returncode == code, result.stderr + told(rows(result.stdout))
    return rows(result.stdout)


@pytest.mark.parametrize("collective", ["all_to_all", "all_to_allv splits=zipf alpha=1.5"])
def test_every_way_is_right(tmp_path: Path, collective: str) -> None:
    name, *asked = collective.split()
    found = swept(tmp_path, f"collective={name}", *asked, "algorithm=all", "-b", "1K", "-e", "4M", "-f", "64")
    odd_size = ("dtype=bf16", "-b", "1234568", "-e", "1234568")
    found += swept(tmp_path, f"collective={name}", *asked, "algorithm=all", *odd_size)
    known = {"two levels need at least 2 nodes", NOT_CAPTURABLE}
    bad = [row for row in found if row["status"] != "ok" and not any(text in row["reason"] for text in known)]
    assert not bad, told(found) + str({row["reason"] for row in bad})
    assert {"direct", "symm_store", "symm_copy_engine"} <= {row["algorithm"] for row in found if row["status"] == "ok"}


def test_other_collectives_are_right(tmp_path: Path) -> None:
    found = swept(tmp_path, "collective=all", "algorithm=all", "dtype=fp32,bf16", "-b", "64K", "-e", "64K")
    assert {row["status"] for row in found} <= {"ok", "skipped"}


def test_one_sided_calls_under_random_delays() -> None:
    assert not any(result["wrong"] for result in stress.run(gpus.count(os.environ), 2000, seed=1))


@pytest.mark.parametrize("algorithm", ["direct", "symm_store"])
def test_out_of_memory_ends_that_case_alone(tmp_path: Path, algorithm: str) -> None:
    words = (f"algorithm={algorithm}", "mode=isolated", "buffers=symmetric")
    found = swept(tmp_path, *words, "-b", "1M", "-e", "1T", "-f", "1048576", code=1)
    small, large = sorted(found, key=lambda row: row["size_bytes"])  # measured in any order
    assert (small["status"], large["status"]) == ("ok", "out_of_memory")
    assert "available" in large["reason"]


@pytest.mark.parametrize(("number", "status", "said"), [
    (signal.SIGKILL, "error", "killed by signal 9"), (signal.SIGSTOP, "timeout", "no progress for 10 s"),
])  # fmt: skip
def test_a_lost_rank_ends_in_a_clear_error(tmp_path: Path, number: signal.Signals, status: str, said: str) -> None:
    words = (
        "sweep", "gpu", "algorithm=symm_store", "mode=isolated", "buffers=symmetric", "-b", "1M", "-e", "1M",
        "launches=1", "cap=60", "precision=0", "samples.max=10000000", "timeout=10", "--no-plots", "--format", "json",
    )  # fmt: skip
    sweep = subprocess.Popen(
        [sys.executable, "-m", "commbench", *words], cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (found := list(tmp_path.glob("results/2*/logs/*/rank-1.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)  # into the measurement
    os.kill(int(json.loads(found[0].read_text())["pid"]), number)
    began = time.monotonic()
    out, error = sweep.communicate(timeout=120)
    assert sweep.returncode == 1 and time.monotonic() - began < 60, error
    (row,) = rows(out)
    assert row["status"] == status and said in row["reason"]
    assert not family(only_run(tmp_path / "results").name)


def test_virtual_hosts_go_through_the_network(tmp_path: Path) -> None:
    """Two hosts of two ranks on two GPUs, of which each has one of both."""
    found = swept(
        tmp_path, "fabric=virtual", "layout=2x2", "algorithm=direct,2d_intra_first,2d_pipelined", "mode=isolated",
        "buffers=plain", "-b", "64K", "-e", "64K", "env.NCCL_DEBUG=INFO",
    )  # fmt: skip
    assert {(row["status"], row["fabric"]) for row in found} == {("ok", "virtual")}
    log = "".join(path.read_text() for path in tmp_path.glob("results/2*/logs/*/rank-*.log"))
    assert "via NET/Socket" in log and "via P2P" in log
