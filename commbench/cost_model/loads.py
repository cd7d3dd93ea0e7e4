"""Loads: what each step of an algorithm asks of ranks, nodes and machines, as arrays.

A load is a row of `COLUMNS`: how many ranks take part, and messages and KiB over each class of link. Each resource has
the rows of all its owners (every rank, every node, in either direction); a step takes a resource as long as the
costliest of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from commbench import algorithms
from commbench.collectives.payload import payload_of
from commbench.layout import Layout
from commbench.records import Case
from commbench.spec import Step
from commbench.stats import Floats

COLUMNS = (
    *("ranks", "messages_intra", "kib_intra", "messages_inter", "kib_inter"),
    *("replies_inter", "reply_kib_inter"),  # messages and KiB that go the other way, for which something comes back
)
# Of each resource: whose loads are added up, and which columns count.
RESOURCES: dict[str, tuple[str, tuple[int, ...]]] = {
    "rank": ("rank", (1, 2, 3, 4, 5, 6)),  # a rank serves both classes of link in turn
    "rank_intra": ("rank", (1, 2)),
    "rank_inter": ("rank", (3, 4, 5, 6)),
    "node_inter": ("node", (3, 4, 5, 6)),  # ranks share their node's link
    "node_cpu": ("host", (0, 1, 2, 3, 4)),
    "machine_cpu": ("machine", (0, 1, 2, 3, 4)),  # one machine stands for all nodes
}
_KIB = 1024.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseLoads:
    """What a case moves: steps x resources x rows x columns, padded with zeros; `after[s, t]`: step s waits for t."""

    rows: Floats
    after: npt.NDArray[np.bool_]
    largest_message_bytes: int

    @property
    def identity(self) -> bytes:
        """Return bytes that are the same for cases that move the same."""
        return repr(self.rows.shape).encode() + self.rows.tobytes() + self.after.tobytes()


class Known:
    """Loads of cases that were asked before: cases of other modes, buffers or launches move the same."""

    def __init__(self) -> None:
        self._of: dict[str, CaseLoads | None] = {}

    def of_case(self, case: Case) -> CaseLoads | None:
        setup = case.setup
        parts = (setup.nodes, setup.ranks_per_node, case.collective, case.algorithm, case.params, case.arguments)
        key = repr((*parts, case.groups, case.dtype, case.size_bytes, case.in_place, case.buffers))
        if key not in self._of:
            self._of[key] = of_case(case)
        return self._of[key]


def of_case(case: Case) -> CaseLoads | None:
    """Return the loads of a case; None where it cannot run, nothing moves, or nobody here knows the messages."""
    try:
        spec = case.spec
    except ValueError:  # the layout has no such groups
        return None
    algorithm = algorithms.find(case.collective, case.algorithm)
    if payload_of(spec) is not None:  # quantising takes time that no message does
        return None
    if algorithm is None or algorithm.unsupported(spec):
        return None
    steps = algorithm.steps(spec)
    if not steps or not any(step.sends for step in steps):
        return None
    # Groups that work at the same time share their nodes and the machine.
    node = case.setup.ranks_per_node / spec.layout.ranks_per_node
    machine = case.setup.layout.ranks / spec.layout.ranks
    return of_steps(steps, spec.layout, {"rank": 1.0, "node": node, "host": node, "machine": machine})


def of_steps(steps: Sequence[Step], layout: Layout, sharing: Mapping[str, float] | None = None) -> CaseLoads:
    """Return the loads of steps with at least one message, by all ranks of `layout`.

    `sharing`: by owner, how many groups that do the same share one of its kind; None: the steps have all ranks' sends.
    """
    times = sharing or {}
    place = {step.name: number for number, step in enumerate(steps)}
    after = np.zeros((len(steps), len(steps)), dtype=bool)
    rows_by_step: list[list[Floats]] = []
    largest = 0.0
    for number, step in enumerate(steps):
        after[number, [place[name] for name in step.after]] = True
        sends = np.array(step.sends, dtype=np.float64).reshape(-1, 3)
        largest = max(largest, float(sends[:, 2].max(initial=0.0)))
        owned = _owned(sends, layout)
        rows = []
        for owner, columns in RESOURCES.values():
            counted = np.zeros_like(owned[owner])
            counted[:, columns] = owned[owner][:, columns]
            rows.append(_costliest(counted * times.get(owner, 1.0)))
        rows_by_step.append(rows)
    most = max(len(rows) for step_rows in rows_by_step for rows in step_rows)
    padded = np.zeros((len(steps), len(RESOURCES), most, len(COLUMNS)))
    for number, step_rows in enumerate(rows_by_step):
        for resource, rows_of in enumerate(step_rows):
            padded[number, resource, : len(rows_of)] = rows_of
    return CaseLoads(rows=padded, after=after, largest_message_bytes=int(largest))


def _owned(sends: Floats, layout: Layout) -> dict[str, Floats]:
    """Return rows of every rank and node, out and in, and of every host and one machine.

    Those of hosts and of the machine are of what is sent only: a message counts once. `sends`: source, destination and
    bytes of each message.
    """
    src, dst = sends[:, 0].astype(np.intp), sends[:, 1].astype(np.intp)
    kib, m = sends[:, 2] / _KIB, layout.ranks_per_node
    crosses = src // m != dst // m
    column = np.where(crosses, 3, 1)

    def added(owners: int, *parts: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]) -> Floats:
        flat = np.concatenate([owner * len(COLUMNS) + columns for owner, columns, _ in parts])
        weights = np.concatenate([values for _, _, values in parts])
        sums: Floats = np.bincount(flat, weights, owners * len(COLUMNS)).astype(np.float64)
        return sums.reshape(owners, len(COLUMNS))

    one, over = np.ones_like(kib), np.flatnonzero(crosses)
    five, six = np.full(len(over), 5), np.full(len(over), 6)
    owned = {}
    for owner, owners, out, into in (
        ("rank", layout.ranks, 2 * src, 2 * dst + 1),
        ("node", layout.nodes, 2 * (src // m), 2 * (dst // m) + 1),
    ):
        owned[owner] = added(
            2 * owners,
            (out, column, one), (out, column + 1, kib), (into, column, one), (into, column + 1, kib),
            # Announcements and acknowledgements leave the receiver and come to the sender.
            (into[over] - 1, five, one[over]), (into[over] - 1, six, kib[over]),
            (out[over] + 1, five, one[over]), (out[over] + 1, six, kib[over]),
        )  # fmt: skip
    host = added(layout.nodes, (src // m, column, one), (src // m, column + 1, kib))
    host[:, 0] = np.bincount(np.unique(np.concatenate([src, dst])) // m, minlength=layout.nodes)
    return {**owned, "host": host, "machine": host.sum(axis=0, keepdims=True)}


def _costliest(rows: Floats) -> Floats:
    """Return the rows that could be the costliest: none is below another in every column."""
    top = rows.max(axis=0)
    if (rows == top).all(axis=1).any():  # one owner has the most of everything, as where all do alike
        return np.asarray(top[None])
    unique = np.array(sorted(set(map(tuple, rows.tolist())), reverse=True))
    kept: list[Floats] = []
    for row in unique:  # in descending order, so that nothing later dominates what was kept
        if not any((row <= other).all() for other in kept):
            kept.append(row)
    return np.array(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Loads of several cases in one array: cases x steps x resources x rows x columns.

    `skew_us`: of each case, what ranks wait for each other because they begin at different times.
    """

    rows: Floats
    after: npt.NDArray[np.bool_]
    skew_us: Floats


def batch(items: Sequence[CaseLoads], skew_us: Sequence[float] = ()) -> Batch:
    steps = max(item.rows.shape[0] for item in items)
    most = max(item.rows.shape[2] for item in items)
    rows = np.zeros((len(items), steps, len(RESOURCES), most, len(COLUMNS)))
    after = np.zeros((len(items), steps, steps), dtype=bool)
    for number, item in enumerate(items):
        n, _, m, _ = item.rows.shape
        rows[number, :n, :, :m] = item.rows
        after[number, :n, :n] = item.after
    return Batch(rows=rows, after=after, skew_us=np.array(skew_us if len(skew_us) else np.zeros(len(items))))
