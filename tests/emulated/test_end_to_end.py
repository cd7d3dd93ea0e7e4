"""A newcomer types docs/guide/end-to-end.md: sweep, tune, export, a program, training, and what that was worth."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from commbench.profile import file
from tests.support.page import shell, typed

_SENT = 32 * 1024  # what the page's training hands to an all-to-all


def check(said: Sequence[str], here: Path) -> None:
    """said: stdout of each block; here: the folder with what they left."""
    sweep, tune, why, export, exchange, train, ab = said  # the sections of the page
    assert len(re.findall(r" ok$", sweep, re.MULTILINE)) == 6, sweep

    profile = file.load(here / "profile.json")
    (scope,) = profile.scopes
    assert (scope.nodes, scope.ranks_per_node) == (2, 2) and "100mbit links" in scope.fabric
    its = next(one for one in profile.choices if one.max_bytes is None or one.max_bytes >= _SENT)
    assert its.algorithm == "2d_intra_first" and its.min_bytes <= _SENT, tune
    assert [seen.verdict for seen in its.evidence if seen.size_bytes == _SENT] == ["confirmed"], tune
    assert f"{its.min_bytes} .. {its.max_bytes} 2d_intra_first" in why and f"at {_SENT} verdict=confirmed" in why

    assert export == (here / "tuned.env").read_text() and scope.id in export
    assert "--nodes=2" in (here / "start.sh").read_text()
    assert "1 node x 2 ranks" in exchange and "all_to_all, 32 KiB: direct" in exchange
    assert "2d_intra_first cannot do this" in exchange

    assert "2 nodes x 2 ranks" in train and f"scope {scope.id}" in train
    assert "all_to_all, 32 KiB: 2d_intra_first" in train and "bits a byte held out" in train, train
    (folder,) = (here / "results").glob("*-train-ab-*")
    worth = json.loads((folder / "ab.json").read_text())
    assert worth["losses"] == 0 and worth["apart"] == 0 and worth["pairs"] == 1, worth
    assert worth["predicted"] > 1, "of exchanges that the profile says are faster"
    assert "losses of both arms are identical" in ab


@pytest.mark.slow
@pytest.mark.timeout(900)  # some twenty launches: two minutes where nobody else wants the CPUs
def test_the_page_works_as_typed(tmp_path: Path) -> None:
    env, here = shell(tmp_path / "bin"), tmp_path / "typed"
    here.mkdir()
    said = []
    for block in typed():
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=here, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    check(said, here)
