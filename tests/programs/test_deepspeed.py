"""DeepSpeed's own MoE layer, nothing of it changed: the same losses to the bit with a profile and without."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commbench.profile import file
from tests.conftest import REPOSITORY
from tests.support import profiles

pytestmark = pytest.mark.programs
if importlib.util.find_spec("deepspeed") is None:
    pytest.skip(
        "deepspeed is not installed: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed", allow_module_level=True
    )
LOADED = [entry.value for entry in importlib.metadata.entry_points(group="torch.backends")]
if "commbench_autoload:activate" not in LOADED:
    pytest.skip("torch does not load commbench here: install it again", allow_module_level=True)

PROGRAM = REPOSITORY / "tests/programs/deepspeed_moe.py"
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", str(PROGRAM))


def run(*words: str) -> tuple[list[str], str]:
    """The losses of the steps, and what was said on stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COMMBENCH_EXPLAIN": "1"}
    done = subprocess.run(
        [*words, *LAUNCH], env=environment, capture_output=True, text=True, timeout=280, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return re.findall(r"step \d+ loss (\S+)", done.stdout), done.stderr


def installed() -> str:
    """One digest of all files of deepspeed."""
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    told = hashlib.sha256()
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        told.update(path.read_bytes())
    return told.hexdigest()


def test_losses_are_the_same_to_the_bit(tmp_path: Path) -> None:
    before = installed()
    path = tmp_path / "p.json"
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise"), nodes=1, ranks_per_node=4), path)
    alone, said = run()
    assert len(alone) == 10 and len({*alone}) == 10 and "pairwise" not in said
    losses, said = run(sys.executable, "-m", "commbench", "exec", "--profile", str(path), "--")
    assert losses == alone
    assert re.search(r"all_to_all, \d+ KiB: pairwise window=1", said), said
    assert installed() == before
