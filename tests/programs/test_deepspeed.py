"""DeepSpeed's own MoE layer, nothing of it changed: the same losses to the bit with a profile and without.

Then all of docs/guide/any-program.md: recorded, tuned, run so and compared on an emulated cluster, as typed there.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from commbench.profile import file
from tests.conftest import REPOSITORY
from tests.emulated.conftest import lacking
from tests.support import page, profiles
from tests.support.installed_programs import FOLDER, digest, needed, run, unfolded

pytestmark = [pytest.mark.programs, pytest.mark.timeout(1800)]  # each rank imports deepspeed: minutes on a busy machine
needed("deepspeed")
PROGRAM = "deepspeed_moe.py"
PAGE = REPOSITORY / "docs/guide/any-program.md"


def test_losses_are_the_same_to_the_bit(tmp_path: Path) -> None:
    before = digest("deepspeed")
    path = tmp_path / "p.json"
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise"), nodes=1, ranks_per_node=4), path)
    alone, _, said = run(PROGRAM)
    assert len(alone) == 10 and len({*alone}) == 10 and "pairwise" not in said
    losses, _, said = run(PROGRAM, under=("exec", "--profile", path))
    assert losses == alone
    assert re.search(r"all_to_all, \d+ KiB: pairwise window=1", said), said
    assert digest("deepspeed") == before


@pytest.mark.timeout(7200)  # a tuning and some six launches, each of which imports deepspeed four times
@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_the_page_works_as_typed(tmp_path: Path) -> None:
    """With less time for the tuning and fewer rounds than the page: what it finds is the same, not how surely."""
    before = digest("deepspeed")
    env, here = page.shell(tmp_path / "bin"), tmp_path / "typed"
    here.mkdir()
    shutil.copy(FOLDER / PROGRAM, here)
    said = []
    for block in page.typed(PAGE):
        less = re.sub(r"budget=\w+", "budget=90s", re.sub(r"rounds=\d+", "rounds=1", block))
        done = subprocess.run(
            ["bash", "-e", "-c", less], cwd=here, env=env, capture_output=True, text=True, timeout=3600, check=False
        )
        assert done.returncode == 0, f"{less}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    record, tune, same, ab = map(unfolded, said)

    assert "# 4 ranks on 2 x 2, gloo, 25 steps" in record, record
    assert len(re.findall(r"^[12] all-to-alls? of 4 KiB a step over 4 ranks.*deepspeed_moe.py:\d+$", record, re.M)) == 2
    profile = file.load(here / "p.json")
    (scope,) = profile.scopes
    assert (scope.nodes, scope.ranks_per_node) == (2, 2)
    assert scope.fabric == "100mbit links, 30000 B per packet", "the trace's cluster is the one that is tuned"
    assert {choice.algorithm for choice in profile.choices} & {"2d_intra_first", "2d_inter_first"}, tune
    assert "predicted from" in tune, tune
    assert "the losses are the same" in same, same
    found = json.loads((here / "results/latest/ab.json").read_text())
    assert found["rounds"] == 1 and found["ratio"] and not found["failed"] and found["said"] == [], ab
    assert digest("deepspeed") == before
