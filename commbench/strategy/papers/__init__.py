"""What the papers' numbers imply: figures that others published, predicted as bands by formulas of their systems.

`commbench predict` prints them; docs/reference/papers.md says what was assumed. Nothing is fitted to published numbers.

    figure.py          PaperFigure: predicted rows beside published ones, and what a publication leaves open
    tutel.py           Tutel's announcement: one layer (Figure 1), all-to-all (Figure 2), a training (Figure 3)
    monta.py, parm.py  MoNTA's 2 x 70B and Parm's grid of layers, by the planner of `commbench.strategy`
    simumax.py         SimuMax's measurements of Megatron on B200, by the planner
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from commbench.errors import UsageError, unknown
from commbench.strategy.papers import monta, parm, simumax, tutel
from commbench.strategy.papers.figure import PaperFigure

FIGURES: dict[str, Callable[[Sequence[int]], PaperFigure]] = {
    "tutel-layer": tutel.layer,
    "tutel-all-to-all": tutel.all_to_all,
    "tutel-training": tutel.training,
    "monta": monta.strategy,
    "parm": parm.grid,
    "simumax": simumax.cells,
}
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def predict(name: str, gpus: Sequence[int] = GPUS) -> PaperFigure:
    """Return a published figure with its bands. gpus: numbers of GPUs, multiples of 8; the others have their
    own. Raises `UsageError` for an unknown name, or for numbers that are none of these."""
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    for count in gpus:
        if count not in range(8, 4097, 8):
            raise UsageError(f"{count} GPUs: a node has 8 of them",
                             hint="multiples of 8, from 8 to 4096: --gpus 8,64,512")  # fmt: skip
    return FIGURES[name](gpus)
