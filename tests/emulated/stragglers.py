"""Sweeps of pairs on emulated clusters of 4 nodes x 2 ranks, healthy or with a slow link and a slow rank planted.

Messages take 8 ms on their links (7 inside a node): the links' rates are what takes the time, not the CPUs that all
ranks share. One node's link is slowed to a third, and a rank of another node works 1 ms of 21.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.conftest import commbench, only_run
from tests.emulated.throttle import throttled

NODES, RANKS = 4, 2
CLUSTER = ("transport=gloo", "fabric=emulated", f"nodes={NODES}", f"ranks_per_node={RANKS}", "link=500mbit")
CLUSTER += ("intra_link=500mbit", "-b", "512K", "-e", "512K")
FEW = ("launches=3", "iters=4", "warmup=1", "--no-plots", "--quiet")
Run = Callable[..., subprocess.CompletedProcess[str]]
ALONE: Run = functools.partial(commbench, timeout=400)  # two of them at once will do


def planted(seed: int, out: Path, run: Run = ALONE) -> tuple[list[str], list[str]]:
    """What was planted and what was named, as `link 1 both` and `rank 5`."""
    rng = random.Random(seed)
    slow, other = rng.sample(range(NODES), 2)
    rank = other * RANKS + rng.randrange(RANKS)
    found = _named(seed, out, f"slow_link=node{slow}:3", rank, run)
    return [f"link {[slow]} both", f"rank {[rank]}"], found


def healthy(seed: int, out: Path) -> list[str]:
    """What was named where nothing is slow."""
    return _named(seed, out, "slow_link=none", None, ALONE)


def _named(seed: int, out: Path, link: str, rank: int | None, run: Run) -> list[str]:
    out.mkdir(parents=True)
    with throttled(out, rank) if rank is not None else contextlib.nullcontext():
        swept = run("sweep", "pairs", *CLUSTER, *FEW, link, f"seed={seed}", "--out", str(out), cwd=out)
    assert swept.returncode == 0, swept.stderr
    looked = run("stragglers", str(only_run(out)), "--format", "json", cwd=out)
    assert looked.returncode in (0, 1), looked.stderr
    found = json.loads(looked.stdout)["found"]
    assert looked.returncode == bool(found)
    # A rank that rests is slow when it receives, and to another degree when it sends: it may be named for each.
    names = (
        f"rank {item['ranks']}" if item["kind"] == "rank"
        else f"{item['kind']} {item.get('nodes') or item['ranks']} {item['direction']}"
        for item in found
    )  # fmt: skip
    return list(dict.fromkeys(names))
