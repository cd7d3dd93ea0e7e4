"""HF's Mixtral under FSDP2, nothing of it changed: the same to the bit with a profile, and nothing to tune."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from commbench.profile import file
from tests.support import profiles
from tests.support.installed_programs import digest, needed, run

pytestmark = [pytest.mark.programs, pytest.mark.timeout(1800)]
needed("transformers")


def test_it_passes_through_and_has_nothing_to_tune(tmp_path: Path) -> None:
    before = digest("transformers")
    path, trace = tmp_path / "p.json", tmp_path / "trace"
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise"), nodes=1, ranks_per_node=4), path)
    alone, _, said = run("mixtral_fsdp.py", 6)
    assert len({*alone}) == 6 and "profile" not in said
    losses, _, said = run("mixtral_fsdp.py", 6, under=("exec", "--profile", path))
    assert losses == alone
    assert "of 4 ranks, profile" in said and "no call of this group has gone by the profile" in said, said

    losses, told, _ = run("mixtral_fsdp.py", 6, under=("record", "--out", trace))
    assert losses == alone
    assert re.search(r"^3 reduce-scatters of .* a step over 4 ranks.*; \S*mixtral_fsdp.py:\d+$", told, re.M), told
    assert sum(int(count) for count in re.findall(r"^(\d) all-gathers? of ", told, re.M)) == 5, told
    assert "answer: nothing of this can be tuned: the program calls no all-to-all" in told, told
    command = [sys.executable, "-m", "commbench", "tune", str(trace), "--out", str(tmp_path / "tuned.json")]
    tuned = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert tuned.returncode == 2
    assert "error: there is nothing to tune: the program calls no all-to-all" in tuned.stderr, tuned.stderr
    assert "all_gather, reduce_scatter" in tuned.stderr and not (tmp_path / "tuned.json").exists()
    assert digest("transformers") == before
