"""Bindings of real ranks: what the kernel says that they have is what was asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from commbench.binding import affinity
from tests.conftest import commbench, environment, here, only_run, rows_of

CPUS = sorted(os.sched_getaffinity(0))
WORDS = ("sweep", "quick", "transport=gloo", "algorithm=direct", "nodes=1", "ranks_per_node=2", "-b", "64K",
         "-e", "64K", "launches=1", "iters=3", "warmup=1", "--no-plots", "--format", "json")  # fmt: skip
MEMORY = () if not affinity.unsupported_memory_policy() else ("binding_memory=off",)
several = pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: there is nothing to choose")


@several
@pytest.mark.parametrize("launcher", ["local", "torchrun"])
def test_every_policy_is_what_ranks_have(tmp_path: Path, launcher: str) -> None:
    masks = f"{CPUS[1]};{CPUS[0]}"
    policies = "none,pci,block,round_robin,worst,explicit" if launcher == "local" else "explicit"
    words = (*WORDS, f"binding={policies}", f"cpu_masks={masks}", *MEMORY, "--launcher", launcher)
    done = (here if launcher == "local" else commbench)(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["binding"]: row for row in rows_of(done)}
    assert list(rows) and {row["status"] for row in rows.values()} == {"ok"}
    assert rows["explicit"]["rank_cpus"] == masks.replace(";", " ")
    run = only_run(tmp_path / "results")
    seen = set()
    for order in (run / "logs").glob("*/order.json"):
        asked = json.loads(order.read_text())["placements"]
        for rank in (0, 1):
            told = json.loads((order.parent / f"rank-{rank}.json").read_text())
            seen.add(told["binding"]["policy"])
            expected = asked[rank]["cpus"] if asked else CPUS
            assert told["affinity"] == expected, "of the main thread"
            if asked:
                assert told["binding"]["asked"]["cpus"] == expected and len(told["binding"]["found"]["threads"]) == 1
                nodes = asked[rank]["memory_nodes"]
                assert told["binding"]["found"]["memory"] == ("bind" if nodes else "default")
    assert seen == set(policies.split(","))


@several
def test_a_rank_that_is_moved_later_makes_no_row(tmp_path: Path) -> None:
    """As a tool or a container's manager may do, while the case is measured."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "def move(me=os.getpid()):\n"
        "    for _ in range(2000):\n"
        "        time.sleep(0.01)\n"
        f"        if os.sched_getaffinity(os.getpid()) == {{{CPUS[1]}}}:\n"
        "            time.sleep(1.5)\n"
        f"            os.sched_setaffinity(os.getpid(), {{{CPUS[0]}}})\n"
        "            return\n"
        "os.register_at_fork(after_in_child=lambda: threading.Thread(target=move, daemon=True).start())\n"
    )
    words = ("binding=explicit", f"cpu_masks={CPUS[0]};{CPUS[1]}", "binding_memory=off", "precision=0", "cap=3")
    kept = [word for word in WORDS if word != "iters=3"]
    done = commbench(*kept, *words, "samples.max=1000000", cwd=tmp_path, env=environment(tmp_path))
    (row,) = rows_of(done)
    assert done.returncode == 1 and row["status"] == "error" and row["time_us"] is None
    assert "did not" in row["reason"] and "binding=explicit" in row["reason"]


@several
def test_emulated_nodes_are_one_host(tmp_path: Path) -> None:
    words = ("fabric=emulated", "layout=2x1", "binding=explicit", f"cpu_masks={CPUS[1]};{CPUS[0]}", *MEMORY)
    kept = [word for word in WORDS if not word.startswith(("nodes=", "ranks_per_node="))]
    done = here(*kept, *words, cwd=tmp_path)
    if done.returncode == 2 and "emulated" in done.stderr + done.stdout:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert [row["rank_cpus"] for row in rows_of(done)] == [f"{CPUS[1]} {CPUS[0]}"]
