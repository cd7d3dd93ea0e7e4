"""Which layers keep their activations, redo them, or swap them to the host: a knapsack (KARMA, ATOM).

Memory holds what is kept. Redone layers cost time; swapped ones cost the host's link, which works beside compute and
costs time only where it has more to copy than compute lasts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from commbench.output.grid import number
from commbench.stats import Floats
from commbench.strategy.memory import CONTEXT_BYTES, FRAGMENTED, GIB, micro_batches
from commbench.strategy.ranking import PlanProblem, Ranked
from commbench.strategy.setting import Settings
from commbench.strategy.stages import layers_of_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """So many layers that are alike. kept_bytes: of one that keeps all; redone_bytes, swapped_bytes: what is left.

    redo_us: of a step that redoes one. copy_us: of the host's link, there and back, in a step that swaps one; None:
    there is no such link.
    """

    count: int
    kept_bytes: float
    redone_bytes: float
    redo_us: float
    swapped_bytes: float = 0.0
    copy_us: float | None = None


class LayerMix(NamedTuple):
    """Says how many layers of each kind are redone, how many swapped, what that costs a step, and what it holds."""

    redone: tuple[int, ...]
    swapped: tuple[int, ...]
    us: float
    held_bytes: float


def mix(kinds: Sequence[LayerKind], limit_bytes: float, hidden_us: float = 0.0) -> LayerMix | None:
    """Return the cheapest mix that holds at most so many bytes; None where none does.

    hidden_us: how long the host's link works beside compute for nothing. Exact: partial mixes are dropped only where
    another one is at least as good in bytes, time and copies.
    """
    states = np.zeros((1, 3))  # bytes, us of what is redone, us of copies
    taken = np.zeros((1, 0), dtype=np.int64)  # redone and swapped of each kind so far
    for kind in kinds:
        counts = _counts(kind)
        redo, swap = counts[:, 0], counts[:, 1]
        nbytes = (kind.count - redo - swap) * kind.kept_bytes + redo * kind.redone_bytes + swap * kind.swapped_bytes
        own = np.stack([nbytes, redo * kind.redo_us, swap * (kind.copy_us or 0.0)], axis=1)
        states = (states[:, None] + own[None]).reshape(-1, 3)
        taken = np.hstack([np.repeat(taken, len(counts), axis=0), np.tile(counts, (len(taken), 1))])
        best = _undominated(states)
        states, taken = states[best], taken[best]
    costs = states[:, 1] + np.maximum(states[:, 2] - hidden_us, 0.0)
    costs = np.where(states[:, 0] <= limit_bytes, costs, np.inf)
    place = int(np.lexsort((states[:, 2], costs))[0])  # of equal ones that with the fewest copies
    if not np.isfinite(costs[place]):
        return None
    chosen = taken[place].tolist()
    return LayerMix(tuple(chosen[::2]), tuple(chosen[1::2]), float(costs[place]), float(states[place, 0]))


def told(problem: PlanProblem, first: Ranked) -> str:
    """Return what a mix of layers makes of a strategy that memory binds, in words; "" where nothing is to be said.

    The same strategy without recomputation is filled up to memory: of its fullest stage as many layers are redone or
    swapped as must be.
    """
    plain = dataclasses.replace(first.setting, recompute="none")
    both = Settings.of([plain, dataclasses.replace(plain, recompute="redo")])
    parts, times = problem.memory(both), problem.times(both, problem.draw(1))
    layers = max(layers_of_stages(problem.model.layers, plain.pp))
    room = (problem.cluster.memory_gib.value * GIB - CONTEXT_BYTES) / (1 + FRAGMENTED)
    room -= float((parts.weights + parts.gradients + parts.optimizer)[0]) + float(parts.working.max())
    kept, redone = (float(one) / layers for one in parts.activations)
    if room >= kept * layers or kept <= redone:
        return ""
    copy_us = None
    if problem.host_gbs:
        flying = plain.pp + (plain.schedule.name == "overlap_1f1b")
        copies = float(micro_batches(problem.work, both)[0]) * 2 * kept / flying
        copy_us = copies / (problem.host_gbs * 1e3)
    kind = LayerKind(count=layers, kept_bytes=kept, redone_bytes=redone, copy_us=copy_us,
                     redo_us=max(float(times.us[0, 1] - times.us[0, 0]), 0.0) / layers)  # fmt: skip
    found = mix([kind], room, float(times.parts["compute"][0]))
    if found is None:
        return ""
    ways = [f"{count} of {layers} layers {how}" for count, how in ((found.redone[0], "redone"),
                                                                   (found.swapped[0], "swapped")) if count]  # fmt: skip
    us = float(times.us[0, 0]) + found.us
    return f"with {' and '.join(ways)} {plain.label} fits too: {number(us / 1e3)} ms a step, {us / first.us:.2f}x"


def _counts(kind: LayerKind) -> npt.NDArray[np.int64]:
    """List how many of a kind may be redone and swapped, [c, 2]."""
    most = 0 if kind.copy_us is None else kind.count
    return np.array(
        [(redo, swap) for redo in range(kind.count + 1) for swap in range(min(most, kind.count - redo) + 1)]
    )


def _undominated(states: Floats) -> npt.NDArray[np.intp]:
    """Return the places of states to which no other is at least as good in all and better in one."""
    order = np.lexsort((states[:, 2], states[:, 1], states[:, 0]))
    kept: list[int] = []
    front = np.empty((0, 2))
    for place in order:  # bytes ascend, so that whoever comes later can win by time or copies alone
        if not (front <= states[place, 1:]).all(axis=1).any():
            kept.append(int(place))
            front = np.vstack([front[~(front >= states[place, 1:]).all(axis=1)], states[place, 1:]])
    return np.array(kept, dtype=np.intp)
