"""Megatron-Core's MoE layer with its alltoall dispatcher, nothing of it changed: the same losses to the bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from commbench.profile import file
from tests.support import profiles
from tests.support.installed_programs import digest, needed, run

pytestmark = [pytest.mark.programs, pytest.mark.timeout(3600)]
needed("megatron")


def test_losses_are_the_same_to_the_bit(tmp_path: Path) -> None:
    before = digest("megatron.core")
    path = tmp_path / "p.json"
    file.save(profiles.profile(profiles.choice("all_to_allv", "pairwise")), path)
    alone, told, said = run("megatron_moe.py", 8, under=("record", "--out", tmp_path / "trace"))
    assert len({*alone}) == 8 and "pairwise" not in said
    assert re.search(r"^\d uneven all-to-alls? of .* a step over 4 ranks: .*; \S*megatron_moe.py:\d+$", told, re.M), (
        told
    )
    losses, _, said = run("megatron_moe.py", 8, under=("exec", "--profile", path))
    assert losses == alone
    many = re.search(r"uneven exchanges: (\d+) of (\d+) calls by pairwise window=1 \(\d+\), whose first messages", said)
    assert many and 0 < int(many[1]) == int(many[2]), said
    assert digest("megatron.core") == before
