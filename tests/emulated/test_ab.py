"""`commbench ab` of a program on an emulated cluster: both arms on both nodes, by turns."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import here

CLUSTER = ("fabric=emulated", "nodes=2", "ranks_per_node=2", "link=100mbit", "message_overhead=30000")
PROGRAM = "echo node $PET_NODE_RANK of $PET_NNODES, $PET_NPROC_PER_NODE ranks: took $X ms; echo $GLOO_SOCKET_IFNAME"


def test_each_launch_runs_on_every_node(tmp_path: Path) -> None:
    words = ("ab", *CLUSTER, "env.X=12,10", "rounds=1", "--metric", "took ([0-9]+)", "--format", "json", "--no-plots")
    done = here(*words, "--", "sh", "-c", PROGRAM, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ratio"] == 1.2 and found["rounds"] == 1 and found["fabric"] == "emulated"
    assert found["cluster"] == "2 nodes x 2 ranks, emulated: 100mbit links, 30000 B per packet"
    for name, took in (("baseline", 12), ("candidate", 10)):
        (log,) = tmp_path.glob(f"results/latest/logs/round-001-{name}.log")
        lines = [f"node {node} of 2, 2 ranks: took {took} ms" for node in range(2)]
        assert sorted(log.read_text().splitlines()) == sorted([*lines, "net0", "net0"])
