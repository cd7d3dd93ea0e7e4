"""How long calls take on a cluster's links, by each draw: of declared numbers, or of costs that were fitted."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from commbench.cost_model.forms import CALL, Form
from commbench.cost_model.loads import COLUMNS, RESOURCES, Batch
from commbench.stats import Floats
from commbench.strategy.call_table import CallTable
from commbench.strategy.calls import Calls, taken
from commbench.strategy.cluster import GpuCluster
from commbench.strategy.draws import Draws

_LINKED = Form("rank")
_INTER = slice(2, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTimes:
    """Costs of links, a set for each draw. `inter_us` and `intra_us` say which class of link a call waits for."""

    cluster: GpuCluster
    form: Form
    costs: Floats  # [d, parameters]
    missed: Floats  # [d]: by how much what is measured differs from what was fitted
    draws: Draws
    table: CallTable | None = None

    def us(self, calls: Calls) -> Floats:
        """Return microseconds, [d, n]."""
        times = self._us(calls)
        found = self._over_leaves(calls, times)
        return found if self.table is None else found * self._as_measured(self.table, calls, times)

    def bound_by_inter(self, calls: Calls) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Return of each call whether it waits for links between nodes, [n], in the middle of all draws."""
        far, near = (dataclasses.replace(calls, loads=calls.loads * of) for of in ([0, 0, 1, 1], [1, 1, 0, 0]))
        return np.asarray(self._us(far, 1)[0] >= self._us(near, 1)[0]) & (calls.nodes > 1)

    def _us(self, calls: Calls, sets: int | None = None) -> Floats:
        unique, back = np.unique(calls.loads.reshape(len(calls), 8), axis=0, return_inverse=True)
        costs = self.costs[:sets]
        times = self.form.time_us(costs, _batch(unique.reshape(-1, 2, 4), self.cluster))
        times = times * self.missed[: len(costs), None]
        there: Floats = times[:, back.reshape(-1)] * calls.rounds
        call = costs[:, [self.form.costs.index(CALL)]] if self.form.call else 0.0  # once, and not in each round
        return np.asarray(np.where(calls.loads.any(axis=(1, 2)), there - call * (calls.rounds - 1), 0.0))

    def _as_measured(self, table: CallTable, calls: Calls, times: Floats) -> Floats:
        """Return what calls take as they were measured, over what costs of links make of them, [d, n].

        A group that was measured takes what it took. Another one is as far off as the nearest that was, if both are on
        one node, or both on several. What was measured of no kind is not off.
        """
        found = np.ones_like(times)
        kinds = zip(calls.kind.tolist(), calls.of.size.tolist(), calls.of.per_node.tolist(), strict=True)
        for kind, size, per_node in sorted(set(kinds)):
            if (nearest := table.nearest(kind, size, per_node)) is None:
                continue
            at = (calls.kind == kind) & (calls.of.size == size) & (calls.of.per_node == per_node)
            at &= (calls.nbytes > 0) & calls.loads.any(axis=(1, 2))
            if not at.any():
                continue
            took = nearest.us(calls.nbytes[at])
            # What is off in one launch of a training is off in all its calls of the kind.
            drawn = table.drawn(kind, size, per_node, len(times))[:, None]
            if (nearest.size, nearest.per_node) == (size, per_node):
                found[:, at] = took * drawn / times[:, at]
            else:
                found[:, at] = took / self._us(nearest.calls(calls.nbytes[at]), 1)[0] * drawn
        return found

    def _over_leaves(self, calls: Calls, times: Floats) -> Floats:
        """Return times with the collisions of a fabric beyond one leaf: c on what bytes between nodes take."""
        beyond = calls.nodes > self.cluster.nodes_per_leaf
        if not beyond.any():
            return times
        c = contention(self.draws, self.cluster)
        some = taken(calls, beyond)
        twice = self._us(dataclasses.replace(some, loads=some.loads * [1, 1, 1, 2]))
        found = times.copy()
        found[:, beyond] += (c - 1)[:, None] * (twice - times[:, beyond])
        return found


def contention(draws: Draws, cluster: GpuCluster) -> Floats:
    """Return c of each draw: 1 with adaptive routing, 1 + sqrt(2 ln(links) / w) with static, w exchanges in flight.

    Where nobody knows which of the two it is, log-uniform between them.
    """
    static = 1 + np.sqrt(2 * math.log(max(2 * cluster.gpus, 2)) / draws.in_flight)
    return np.asarray(static ** (1 - draws.adaptive))


def link_times(cluster: GpuCluster, draws: Draws, *, seed: int = 0, table: CallTable | None = None) -> LinkTimes:
    """Return what the cluster's links take: of fitted costs where it has such, else of its declared links.

    table: of calls that were measured as they are.
    """
    fitted = cluster.costs
    if fitted is None:
        names = _LINKED.costs
        costs = np.zeros((len(draws), len(names)))
        for link in cluster.links:
            # Between nodes, a rank has its part of the node's links: all ranks send at once.
            shared = cluster.gpus_per_node if link == "inter" else 1
            costs[:, names.index(f"alpha_{link}_us")] = draws.alpha[link]
            costs[:, names.index(f"beta_{link}_us_per_kib")] = draws.beta[link] * shared
        return LinkTimes(cluster=cluster, form=_LINKED, costs=costs, missed=np.ones(len(draws)), draws=draws,
                         table=table)  # fmt: skip
    rng = np.random.default_rng(seed + 1)
    sets = np.array([list(fitted.costs.values()), *fitted.replicates])
    picked = np.concatenate([[0], rng.integers(min(1, len(sets) - 1), len(sets), len(draws) - 1)])
    missed = np.exp(fitted.spread * rng.standard_normal(len(draws)))
    missed[0] = 1.0
    return LinkTimes(cluster=cluster, form=fitted.form, costs=sets[picked], missed=missed, draws=draws,
                     table=table)  # fmt: skip


def _batch(loads: Floats, cluster: GpuCluster) -> Batch:
    """Return loads [n, 2, 4] of a rank as those of every resource, where all ranks do the same."""
    n, per_node = len(loads), cluster.gpus_per_node
    rank = np.zeros((n, 2, len(COLUMNS)))
    rank[:, :, 1:5] = loads
    rank[:, :, 5:7] = loads[:, :, _INTER]  # answers: as many come back as go out
    host = rank * per_node
    host[:, :, 0] = per_node * loads.any(axis=2)
    owned = {"rank": rank, "node": host, "host": host, "machine": host * cluster.nodes}
    rows = np.zeros((n, 2, len(RESOURCES), 1, len(COLUMNS)))
    for place, (owner, columns) in enumerate(RESOURCES.values()):
        rows[:, :, place, 0, columns] = owned[owner][:, :, columns]
    after = np.zeros((n, 2, 2), dtype=bool)
    after[:, 1, 0] = True
    return Batch(rows=rows, after=after, skew_us=np.zeros(n))
