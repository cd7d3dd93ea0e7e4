"""Does the cost model hold on layouts that no fit has seen?  python -m tests.bench held_out OUT [--cut FILE]

On an emulated cluster of 150 Mbit/s links that charge 20 kB a packet. Costs are fitted to the layouts of a calibration,
all ways and single messages, and asked about other layouts. A cell is right where the named way is the fastest or not
slower than it for certain, launch by launch.

Runs are kept in OUT: what is there is not measured again, so it can be stopped and go on. It takes some ten minutes;
`--only LAYOUT` measures one layout. `--cut FILE` writes the times alone, as the tests have them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from commbench import cost_model
from commbench.cost_model import Observation
from commbench.run_folder import RunFolder
from tests.conftest import commbench
from tests.support import held_out

FABRIC = ("transport=gloo", "fabric=emulated", "link=150mbit", "message_overhead=20000")
ALGORITHMS = "algorithm=direct,pairwise,bruck,2d_intra_first,2d_inter_first"
POLICY = ("launches=6", "warmup=1", "samples.min=5", "--no-plots", "--quiet")
LEARN = ("collective=all_to_all,pairs", "direction=there,both", "-b", "4K", "-e", "1M", "-f", "4", "cap=0.2")
ASK = ("collective=all_to_all", "-b", "4K", "-e", "256K", "-f", "8", "cap=0.35")
# Of each layout that is fitted to: rounds of pairs, between nodes and inside them.
FITTED = {"2x2": "0,2", "2x4": "0,6", "4x2": "0,6", "4x1": "0"}
UNSEEN = ("4x4", "3x5", "5x2", "8x2", "2x8")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="held_out", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--cut", type=Path)
    arguments = parser.parse_args(words)
    layouts = [arguments.only] if arguments.only else [*FITTED, *UNSEEN]
    observations = {layout: _measured(layout, arguments.out) for layout in layouts}
    if arguments.only:
        return 0
    seen = [one for layout in FITTED for one in observations[layout]]
    unseen = [one for layout in UNSEEN for one in observations[layout]]
    if arguments.cut:
        held_out.write(arguments.cut, FABRIC, [*seen, *unseen])
    fitted = cost_model.fit(seen)
    print(*fitted.describe(), "", sep="\n")
    show(held_out.cells(fitted, unseen))
    return 0


def _measured(layout: str, out: Path) -> list[Observation]:
    """Return the cases of one layout, measured unless they are there."""
    parent = out / f"{'fit' if layout in FITTED else 'held'}-{layout}"
    if not (parent / "done").exists():
        parent.mkdir(parents=True, exist_ok=True)
        rounds = (f"round={FITTED[layout]}", *LEARN) if layout in FITTED else ASK
        asked = ["quick", *FABRIC, f"layout={layout}", ALGORITHMS, *rounds, *POLICY, "--out", str(parent)]
        latest = parent / "latest"
        done = commbench("sweep", *(["--resume", str(latest)] if latest.exists() else asked), cwd=parent, timeout=1200)
        assert done.returncode == 0, done.stderr
        (parent / "done").touch()
    return cost_model.observe(RunFolder.open(parent / "latest"))


def show(cells: list[held_out.Cell]) -> None:
    print(f"{'cell':<12} {'fastest (ms)':<24} {'named (ms, and measured)':<36} right")
    for cell in cells:
        won, named = cell.winner, cell.named
        right = "yes" if won == named else "tie" if named in cell.ties else f"no: {cell.regret:.2f}x slower"
        fastest = f"{won} {cell.time_us(won) / 1e3:.2f}"
        says = f"{named} {cell.predicted[named].time_us / 1e3:.2f} ({cell.time_us(named) / 1e3:.2f})"
        print(f"{cell.where:<12} {fastest:<24} {says:<36} {right}")
    print()
    print(held_out.judge(cells))
