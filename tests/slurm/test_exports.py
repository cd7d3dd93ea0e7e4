"""The script that is exported for srun starts ranks on several nodes, with the settings and binding of the profile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from commbench.export import export
from commbench.export.source import ExportSource
from commbench.profile import Profile, Scope
from tests.conftest import PATIENCE_S, environment
from tests.slurm.test_slurm import why_not
from tests.support.export_goldens import HOSTILE

# In a file each: lines of ranks mix on stdout.
SHOW = "import json, os; json.dump(dict(os.environ), open(f'rank-{os.environ[\"SLURM_PROCID\"]}.json', 'w'))"


@pytest.fixture(autouse=True)
def there_is_a_slurm() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.mark.parametrize(("policy", "nodes"), [("none", 2), ("block", 2), ("block", None)])
def test_ranks_have_what_the_profile_says(tmp_path: Path, policy: str, nodes: int | None) -> None:
    scope = Scope(id="s", transport="gloo", nodes=nodes, ranks_per_node=2, env={"NOTE": HOSTILE, "MINE": "unset"},
                  binding=policy, binding_memory=False)  # fmt: skip
    source = ExportSource(Profile(scopes=[scope], choices=[]), tmp_path / "p.json")
    source.path.write_text(export("json", source).text)
    script = tmp_path / "start.sh"
    script.write_text(export("srun", source).text)
    done = subprocess.run(
        ["sh", str(script), sys.executable, "-c", SHOW], env=environment(MINE="mine", NODES="2"), cwd=tmp_path,
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranks = [json.loads(file.read_text()) for file in tmp_path.glob("rank-*.json")]
    assert sorted((found["SLURM_NODEID"], found["SLURM_LOCALID"]) for found in ranks) == [
        (node, rank) for node in "01" for rank in "01"
    ]
    for found in ranks:
        assert found["NOTE"] == HOSTILE and "MINE" not in found
        assert (found["COMMBENCH_BINDING"], found["COMMBENCH_PROFILE"]) == (policy, str(source.path))
