"""Tuning on emulated clusters: the gain, and the regret at sizes that were not tuned. (Half an hour.)"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path

from commbench.profile import file as profile_file
from commbench.profile.table import Table
from tests.conftest import cases_in, environment

NOT_TUNED = ("8K", "32K", "128K")
FABRIC = ("transport=gloo", "fabric=emulated")
FLAT = (*FABRIC, "nodes=4", "ranks_per_node=4", "link=1gbit", "message_overhead=30000", "collective=all_to_all")
GROUPS = (*FABRIC, "nodes=2", "ranks_per_node=8", "link=200mbit", "collective=tp_all_to_all")


def main() -> None:
    for part in (flat, groups):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder))


def commbench(*words: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "commbench", *words]
    return subprocess.run(command, cwd=cwd, env=environment(), text=True, stdout=subprocess.PIPE, check=True).stdout


def flat(folder: Path) -> None:
    """4 x 4 ranks, 1 Gbit/s, 30 kB per packet: the gain, and the regret at sizes that were not tuned."""
    sizes = ("-b", "4K", "-e", "256K", "-f", "4")
    print(commbench("tune", "quick", *FLAT, *sizes, "budget=8m", "--out", "p.json", cwd=folder))
    profile = profile_file.load(folder / "p.json")
    curve = Table(profile, profile.scopes[0].id).curve("all_to_all")
    assert curve is not None
    regrets = []
    for size in NOT_TUNED:
        words = ("algorithm=all", "window=1,2,4", "chunks=1,2,4,8", "-b", size, "-e", size, "launches=10")
        out = commbench("sweep", "quick", *FLAT, *words, "--format", "json", "--no-plots", cwd=folder)
        rows = cases_in(out)
        times = {(row["algorithm"], *row["params"].values()): row["time_us"] for row in rows if row["status"] == "ok"}
        choice = curve.at(rows[0]["size_bytes"])
        mine = times[choice.algorithm, *choice.params.values()]
        best = min(times, key=lambda key: times[key])
        regrets.append(mine / times[best])
        print(
            f"{size}: chosen {choice.label} {mine:.0f} us; best {' '.join(map(str, best))} {times[best]:.0f} us; "
            f"direct {times['direct',]:.0f} us; regret {regrets[-1] - 1:.1%}",
            flush=True,
        )
    mean = math.exp(sum(map(math.log, regrets)) / len(regrets))
    print(f"regret at sizes that were not tuned: geometric mean {mean - 1:.1%}, worst {max(regrets) - 1:.1%}")


def groups(folder: Path) -> None:
    """2 x 8 ranks, 200 Mbit/s: tp_all_to_all over drop_gather, and duplicated beside it."""
    sizes = ("-b", "256K", "-e", "4M", "-f", "4")
    print(commbench("tune", "quick", *GROUPS, *sizes, "cap=0.5", "budget=10m", "--out", "p.json", cwd=folder))
    words = ("algorithm=drop_gather,drop_gather_pipelined,duplicated", "chunks=2,4,8", "cap=0.5", "launches=10")
    print("all ways beside each other, `duplicated` as history:")
    print(commbench("sweep", "quick", *GROUPS, *words, *sizes, "--no-plots", cwd=folder))
