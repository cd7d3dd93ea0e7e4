"""torchrun starts ranks through `commbench exec`, as the exported script says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commbench.export import export
from commbench.export.source import ExportSource
from commbench.profile import Profile, Scope
from tests.conftest import environment

CPUS = sorted(os.sched_getaffinity(0))
SHOW = (
    "import json, os, sys; "
    "print(json.dumps([os.environ['LOCAL_RANK'], os.environ['A'], sorted(os.sched_getaffinity(0)), sys.argv[1:]]))"
)


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: there is nothing to choose")
def test_torchrun_and_exec_understand_each_other(tmp_path: Path) -> None:
    scope = Scope(
        id="s", transport="gloo", nodes=1, ranks_per_node=2, env={"A": "a b"}, binding="explicit",
        cpu_masks=f"{CPUS[1]};{CPUS[0]}", binding_memory=False,
    )  # fmt: skip
    source = ExportSource(Profile(scopes=[scope], choices=[]), tmp_path / "p.json")
    source.path.write_text(export("json", source).text)
    script = tmp_path / "start.sh"
    script.write_text(export("torchrun", source).text)
    done = subprocess.run(
        ["sh", str(script), sys.executable, "-c", SHOW, "--profile", "--", "x"],
        env=environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = ["--profile", "--", "x"]
    assert sorted(json.loads(line) for line in done.stdout.splitlines()) == [
        ["0", "a b", [CPUS[1]], words], ["1", "a b", [CPUS[0]], words]
    ]  # fmt: skip
