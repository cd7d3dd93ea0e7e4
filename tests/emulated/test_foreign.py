"""A program that is not ours, once on each node of an emulated cluster: torchrun joins them, gloo uses the links."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from commbench.emulated import Emulated
from commbench.errors import EnvironmentProblem
from commbench.launch import foreign, foreign_tree
from commbench.launch.foreign import Cluster
from commbench.profile import file
from commbench.sweep import foreign_keys
from tests.conftest import commbench
from tests.support import profiles

PROGRAM = """
import os
import torch
import torch.distributed as dist

def sent():
    lines = [line.split(":") for line in open("/proc/self/net/dev") if ":" in line]
    return {name.strip(): int(numbers.split()[8]) for name, numbers in lines}

dist.init_process_group("gloo")
before = sent()["net0"]
size = dist.get_world_size()
out = torch.empty(size, 65536)
dist.all_to_all_single(out, torch.full((size, 65536), float(dist.get_rank())))
dist.barrier()
assert out[:, 0].tolist() == list(range(size)), out[:, 0]
crossed = sent()["net0"] - before
node = os.environ["PET_NODE_RANK"]
line = f"rank {dist.get_rank()} of {size} on node {node}: {crossed > size * 65536}"
os.write(1, f"{line}\\n".encode())
dist.destroy_process_group()
"""
CLUSTER = ("fabric=emulated", "nodes=2", "ranks_per_node=2", "link=1gbit")


def run(folder: Path, words: Sequence[str], command: Sequence[str]) -> list[str]:
    """What its ranks have said, in their order."""
    (folder / "program.py").write_text(PROGRAM)
    cluster = foreign_keys.read(words).cluster
    ended = foreign.run(command, env={"OMP_NUM_THREADS": "1"}, cluster=cluster, log=folder / "log", timeout_s=100)
    lines = (folder / "log").read_text().splitlines()
    assert ended.code == 0, lines
    return sorted(line for line in lines if line.startswith("rank "))


def test_a_program_finds_the_others_by_master_addr(tmp_path: Path) -> None:
    ranks = "RANK=$PET_NODE_RANK WORLD_SIZE=$PET_NNODES exec"
    command = ["sh", "-c", f'{ranks} "$@"', "sh", sys.executable, str(tmp_path / "program.py")]
    lines = run(tmp_path, ("fabric=emulated", "ranks_per_node=1"), command)
    assert lines == ["rank 0 of 2 on node 0: True", "rank 1 of 2 on node 1: True"]


def test_exec_hands_the_profile_to_each_node(tmp_path: Path) -> None:
    cluster = ("fabric=emulated", "ranks_per_node=1", "link=100mbit")
    made = foreign_keys.read(cluster).cluster
    assert made is not None
    fabric = str(made.emulated)
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise"), fabric=fabric), tmp_path / "p.json")
    told = 'echo "$PET_NODE_RANK of $PET_NNODES by $COMMBENCH_BACKEND on $COMMBENCH_FABRIC"; exit 3'
    done = commbench("exec", "--profile", "p.json", *cluster, "--", "sh", "-c", told, cwd=tmp_path)
    assert done.returncode == 3 and done.stderr == ""
    assert sorted(done.stdout.splitlines()) == [f"{node} of 2 by profile on {fabric}" for node in (0, 1)]


@pytest.mark.slow
def test_torchrun_makes_one_world_of_all_nodes(tmp_path: Path) -> None:
    lines = run(tmp_path, CLUSTER, [sys.executable, "-m", "torch.distributed.run", str(tmp_path / "program.py")])
    assert lines == [f"rank {rank} of 4 on node {rank // 2}: True" for rank in range(4)]


def test_a_node_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = foreign_keys.read(CLUSTER).cluster
    monkeypatch.setattr(
        foreign, "STUB", foreign_tree.STUB.replace("main()", "main.__globals__['_PEERS_S'] = 0.1; main()")
    )
    ended = foreign.run(["sh", "-c", "[ $PET_NODE_RANK = 0 ] && exec sleep 600; exit 5"], cluster=cluster)
    assert (ended.code, ended.node) == (5, 1) and ended.seconds < 60


def test_a_cluster_that_cannot_be_made_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_possible", lambda emulated: None)  # it could be made a moment ago
    with pytest.raises(EnvironmentProblem, match="link is '1 baud'"):
        foreign.run(["true"], cluster=Cluster(emulated=Emulated(nodes=2, link="1 baud"), ranks_per_node=1))
