"""torchtitan's DeepSeek-V3 with its expert parallelism and FSDP, nothing of it changed: the same losses to the bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from commbench.profile import file
from tests.support import profiles
from tests.support.installed_programs import digest, needed, run

pytestmark = [pytest.mark.programs, pytest.mark.timeout(3600)]
needed("torchtitan", "triton")


@pytest.mark.parametrize("ep", [2, 4])
def test_losses_are_the_same_to_the_bit(tmp_path: Path, ep: int) -> None:
    """With experts over 2 ranks they are sharded over 2 by FSDP, over 4 they are not."""
    before = digest("torchtitan")
    path = tmp_path / "p.json"
    file.save(profiles.profile(profiles.choice("all_to_allv", "pairwise")), path)
    alone, told, said = run("torchtitan_moe.py", 6, ep, under=("record", "--out", tmp_path / "trace"))
    assert len({*alone}) == 6 and "pairwise" not in said
    where = r"torchtitan/models/common/token_dispatcher.py:\d+$"
    groups = "" if ep == 4 else r" in 2 groups"
    assert re.search(rf"^\d uneven all-to-alls? of .* a step over {ep} ranks{groups}: .*{where}", told, re.M), told
    losses, _, said = run("torchtitan_moe.py", 6, ep, under=("exec", "--profile", path))
    assert losses == alone
    many = re.search(r"uneven exchanges: (\d+) of (\d+) calls by pairwise window=1 \(\d+\), whose first messages", said)
    assert many and 0 < int(many[1]) == int(many[2]), said
    assert digest("torchtitan") == before
