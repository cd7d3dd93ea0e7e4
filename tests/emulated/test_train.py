"""Training over an emulated cluster, with what was tuned for it: other ways over slow links, the same losses."""

from __future__ import annotations

import json
from pathlib import Path

from commbench.emulated import Emulated
from commbench.profile import file
from tests.conftest import here, only_run
from tests.support import profiles

WORDS = ("train", "tiny", "layers=2", "width=16", "heads=2", "hidden=16", "context=32", "experts=4", "val_sequences=8",
         "batch=4", "warmup=2", "steps=4", "save_every=null", "--format", "json", "-q")  # fmt: skip
CLUSTER = ("fabric=emulated", "nodes=2", "ranks_per_node=2", "link=100mbit")


def test_ways_of_two_levels_train_the_same(tmp_path: Path) -> None:
    choice = profiles.choice("all_to_all", "2d_intra_first")
    cluster = str(Emulated(nodes=2, link="100mbit"))
    file.save(profiles.profile(choice, nodes=2, ranks_per_node=2, fabric=cluster), tmp_path / "p.json")
    losses = []
    for words in (CLUSTER, (*CLUSTER, "profile=p.json")):
        out = tmp_path / f"out-{len(words)}"
        result = here(*WORDS, *words, "--out", str(out), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        losses.append([json.loads(line)["loss"] for line in result.stdout.splitlines()])
        told = next(only_run(out).glob("logs/*/communicator.txt")).read_text()
        assert "2 nodes x 2 ranks" in told and ("2d_intra_first" in told) == ("profile=p.json" in words)
    assert losses[0] == losses[1] and len(losses[0]) == 4
