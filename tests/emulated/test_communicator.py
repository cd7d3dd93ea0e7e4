"""A communicator of ranks on an emulated cluster finds its nodes, and takes a way of two levels over its links."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from commbench import fabric
from commbench.emulated import Emulated
from commbench.profile import file
from commbench.variables import FABRIC
from tests.conftest import PATIENCE_S, REPOSITORY, environment
from tests.support import profiles

PROGRAM = """
import os
import sys
import torch
import torch.distributed as dist
import commbench
from commbench import fabric
from commbench.launch.job import INTERFACES

folder = sys.argv[1]
pids = []
for rank in range(4):
    pids.append(os.fork())
    if pids[-1]:
        continue
    fabric.enter(rank // 2)
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACES[0]
    store = dist.FileStore(f"{folder}/store", 4)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=4)
    comm = commbench.load_profile(f"{folder}/p.json").communicator()
    inp, out = torch.arange(64.0) + 100 * rank, torch.empty(64)
    for _ in range(3):
        comm.all_to_all(out, inp)
    assert torch.equal(out, torch.cat([torch.arange(64.0)[16 * rank :][:16] + 100 * src for src in range(4)]))
    if rank == 0:
        print(comm.layout, comm.explain())
    comm.close()
    dist.destroy_process_group()
    os._exit(0)
assert not any(os.waitpid(pid, 0)[1] for pid in pids)
"""


def test_namespaces_are_nodes(tmp_path: Path) -> None:
    cluster = Emulated(nodes=2, link="1gbit")
    choice = profiles.choice("all_to_all", "2d_intra_first")
    file.save(profiles.profile(choice, nodes=2, ranks_per_node=2, fabric=str(cluster)), tmp_path / "p.json")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = subprocess.run(
        fabric.wrap([sys.executable, str(program), str(tmp_path)], cluster),
        env=environment(REPOSITORY / "kernels", **{FABRIC: str(cluster), "OMP_NUM_THREADS": "1"}),
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("2x2 here: gloo"), result.stdout
    assert f"emulated: {cluster}" in result.stdout and "all_to_all, 256 B: 2d_intra_first" in result.stdout
