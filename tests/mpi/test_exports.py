"""The exported script starts real ranks: with the settings and the CPUs of the profile, whichever mpiexec there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commbench.export import export
from commbench.export.source import ExportSource
from commbench.launch import mpi_library
from commbench.profile import Profile, Scope
from tests.conftest import PATIENCE_S, environment
from tests.support.export_goldens import HOSTILE

CPUS = sorted(os.sched_getaffinity(0))
# In a file each: lines of ranks mix on stdout.
SHOW = """
import json, os, sys
rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))
with open(f"rank-{rank}.json", "w") as file:
    json.dump([dict(os.environ), sorted(os.sched_getaffinity(0)), sys.argv[1:]], file)
"""


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: there is nothing to choose")
@pytest.mark.parametrize("policy", ["none", "explicit"])
def test_ranks_have_what_the_profile_says(tmp_path: Path, policy: str) -> None:
    scope = Scope(
        id="it's one", transport="mpi", nodes=1, ranks_per_node=2, env={"NOTE": HOSTILE, "MINE": "unset"},
        binding=policy, cpu_masks=f"{CPUS[1]};{CPUS[0]}" if policy == "explicit" else "", binding_memory=False,
    )  # fmt: skip
    source = ExportSource(Profile(scopes=[scope], choices=[]), tmp_path / "p.json")
    source.path.write_text(export("json", source).text)
    script = tmp_path / "start.sh"
    script.write_text(export("mpiexec", source).text)
    folder = str(Path(mpi_library.find().mpiexec).parent)
    root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    done = subprocess.run(
        ["sh", str(script), sys.executable, "-c", SHOW, "a b", "--"],
        env=environment(MINE="mine", **root) | {"PATH": f"{folder}:{os.environ['PATH']}"},
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    masks = {"0": [CPUS[1]], "1": [CPUS[0]]}
    for rank in "01":
        found, cpus, words = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert found["NOTE"] == HOSTILE and "MINE" not in found and words == ["a b", "--"]
        assert (found["COMMBENCH_BINDING"], found["COMMBENCH_PROFILE"]) == (policy, str(source.path))
        assert cpus == (masks[rank] if policy == "explicit" else CPUS)
