"""Forms: which costs there are, and how long a case takes by them.

A step begins when the steps that it names are over. It takes a constant, and then each resource in turn of their
arrival: what was started earlier goes first, so steps that are in flight together share what they both need and
overlap in the rest. A step is over when the slowest of its resources has done its part (`max`), or their sum has
passed (`sum`), where one thread does everything.

A link with a token bucket (what `tc` makes of an emulated link) carries `burst_us` worth of load at once after a rest
within a call; calls follow each other so fast that it has not rested before one. The more a link carries in a step, the
dearer a KiB may be: beyond a knee it costs `volume_inter_us_per_kib` more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from commbench.cost_model.loads import COLUMNS, RESOURCES, Batch, CaseLoads
from commbench.stats import Floats
from commbench.units import format_size

# What a cost multiplies; "" where it is a constant.
STEP, CALL, BURST, VOLUME = "step_us", "call_us", "burst_us", "volume_inter_us_per_kib"
_LINK: dict[str, tuple[int, ...]] = {
    "alpha_intra_us": (1,),
    "beta_intra_us_per_kib": (2,),
    "alpha_inter_us": (3,),
    "beta_inter_us_per_kib": (4,),
}
_REPLY: dict[str, tuple[int, ...]] = {"reply_inter_us": (5,), "reply_inter_us_per_kib": (6,)}
_CPU: dict[str, tuple[int, ...]] = {"cpu_rank_us": (0,), "cpu_message_us": (1, 3), "cpu_us_per_kib": (2, 4)}
_INTER_KIB = COLUMNS.index("kib_inter")
_LINKS = {
    "serial": ("rank", "rank"),
    "rank": ("rank_intra", "rank_inter"),
    "node": ("rank_intra", "node_inter"),
}


@dataclass(frozen=True, slots=True)
class Form:
    """`links`: who owns the links between nodes, a `rank` or a `node`; `serial`: a rank serves all links in turn.

    `cpu`: who shares processors, "" where they cost nothing, `node` or `machine`. `power`: 1 adds resources up,
    infinity takes the slowest, and what is between blends the two (the p-norm).
    """

    links: str
    cpu: str = ""
    power: float = math.inf
    burst: bool = False
    replies: bool = False  # whether a message between nodes costs something in the other direction, too
    call: bool = False  # whether a call costs something that its steps do not
    knee_kib: float = 0.0  # of what an owner has to carry between nodes in a step: beyond it a KiB is dearer; 0: never

    @property
    def costs(self) -> tuple[str, ...]:
        """Return names of the parameters, all of them 0 or more, in microseconds or microseconds per KiB."""
        names = [STEP, *_LINK]
        names += list(_REPLY) if self.replies else []
        names += list(_CPU) if self.cpu else []
        names += [BURST] if self.burst else []
        names += [VOLUME] if self.knee_kib else []
        return tuple([*names, CALL] if self.call else names)

    def _weights(self) -> Floats:
        """Return costs x resources x columns: how much of each cost a unit of load takes."""
        names, resources = self.costs, list(RESOURCES)
        weights = np.zeros((len(names), len(RESOURCES), len(COLUMNS)))
        for name, columns in {**_LINK, **(_REPLY if self.replies else {})}.items():
            owner = _LINKS[self.links][0 if "intra" in name else 1]
            weights[names.index(name), resources.index(owner), columns] = 1.0
        if self.cpu:
            for name, columns in _CPU.items():
                weights[names.index(name), resources.index(f"{self.cpu}_cpu"), columns] = 1.0
        return weights

    def _beyond(self, rows: Floats) -> Floats:
        """Return KiB between nodes beyond the knee, of the owners of these links."""
        owner = list(RESOURCES).index(_LINKS[self.links][1])
        carries = np.array([number == owner for number in self.resources()])[:, None]
        beyond: Floats = np.maximum(rows[..., _INTER_KIB] - self.knee_kib, 0.0) * carries
        return beyond

    def busiest_kib(self, loads: CaseLoads) -> float:
        """Return how much the busiest owner of links between nodes carries in a step."""
        return float(loads.rows[:, list(RESOURCES).index(_LINKS[self.links][1]), :, _INTER_KIB].max())

    def resources(self) -> list[int]:
        used = {*_LINKS[self.links], *([f"{self.cpu}_cpu"] if self.cpu else [])}
        return [number for number, name in enumerate(RESOURCES) if name in used]

    def time_us(self, costs: Floats, batch: Batch) -> Floats:
        """Return sets of costs x cases. `costs` is sets x parameters."""
        names, used = self.costs, self.resources()
        rows = batch.rows[:, :, used]
        rates = np.einsum("bp,pkc->bkc", costs, self._weights()[:, used])
        # sets x cases x steps x resources: of the costliest owner
        load_us = np.einsum("pskrc,bkc->bpskr", rows, rates)
        if self.knee_kib:
            load_us += costs[:, names.index(VOLUME)][:, None, None, None, None] * self._beyond(rows)
        load_us = load_us.max(axis=-1)
        loaded = np.asarray(rows.any(axis=(-2, -1)))
        shaped = np.array([list(RESOURCES)[number].endswith("_inter") for number in used])
        burst_us = costs[:, names.index(BURST)] if self.burst else np.zeros(len(costs))
        credit = burst_us[:, None, None] * shaped
        step_us = costs[:, names.index(STEP)][:, None]
        sets, cases, steps = load_us.shape[:3]
        free = np.zeros((sets, cases, len(used)))
        finish = np.zeros((sets, cases, steps))
        for step in range(steps):
            there = loaded[:, step].any(axis=-1)
            ready = np.where(batch.after[:, step], finish, 0.0).max(axis=-1)
            start = (ready + step_us)[..., None]
            begun = np.maximum(free, start - credit)
            free = np.where(loaded[:, step], begun + load_us[:, :, step], free)
            took = np.where(loaded[:, step], np.maximum(free - start, 0.0), 0.0)
            finish[:, :, step] = np.where(there, start[..., 0] + _norm(took, self.power), ready)
        total: Floats = finish.max(axis=-1) + batch.skew_us
        if self.call:
            total = total + costs[:, [names.index(CALL)]]
        return total

    def slopes(self, costs: Floats, batch: Batch) -> tuple[Floats, Floats]:
        """Return the time of each case by one set of costs, and its slopes: cases x parameters.

        The same as `time_us`, step by step; what is the maximum of several has the slopes of the largest.
        """
        names, used = self.costs, self.resources()
        weights, rows = self._weights()[:, used], batch.rows[:, :, used]
        load_us = np.einsum("pskrc,kc->pskr", rows, np.einsum("p,pkc->kc", costs, weights))
        beyond = self._beyond(rows)
        if self.knee_kib:
            load_us = load_us + costs[names.index(VOLUME)] * beyond
        costliest = load_us.argmax(axis=-1)[..., None]
        load_us = np.take_along_axis(load_us, costliest, axis=-1)[..., 0]
        load_slopes = np.einsum(
            "pskc,xkc->pskx", np.take_along_axis(rows, costliest[..., None], axis=3)[..., 0, :], weights
        )
        if self.knee_kib:
            load_slopes[..., names.index(VOLUME)] += np.take_along_axis(beyond, costliest, axis=-1)[..., 0]
        loaded = np.asarray(rows.any(axis=(-2, -1)))
        shaped = np.array([list(RESOURCES)[number].endswith("_inter") for number in used])
        credit = (costs[names.index(BURST)] if self.burst else 0.0) * shaped
        cases, steps = load_us.shape[:2]
        free, free_slopes = np.zeros((cases, len(used))), np.zeros((cases, len(used), len(names)))
        finish, finish_slopes = np.zeros((cases, steps)), np.zeros((cases, steps, len(names)))
        every = np.arange(cases)
        for step in range(steps):
            there = np.asarray(loaded[:, step].any(axis=-1))
            waited = np.where(batch.after[:, step], finish, 0.0)
            last = waited.argmax(axis=-1)
            ready = waited[every, last]
            ready_slopes = np.where(np.asarray(ready > 0)[:, None], finish_slopes[every, last], 0.0)
            start, start_slopes = ready + costs[names.index(STEP)], ready_slopes.copy()
            start_slopes[:, names.index(STEP)] += 1.0
            rested = np.asarray(free < start[:, None] - credit)
            begun = np.where(rested, start[:, None] - credit, free)
            begun_slopes = np.where(rested[..., None], start_slopes[:, None], free_slopes)
            here = loaded[:, step]
            free = np.where(here, begun + load_us[:, step], free)
            free_slopes = np.where(here[..., None], begun_slopes + load_slopes[:, step], free_slopes)
            took = np.where(here, np.maximum(free - start[:, None], 0.0), 0.0)
            took_slopes = np.where(np.asarray(took > 0)[..., None], free_slopes - start_slopes[:, None], 0.0)
            norm = _norm(took, self.power)
            if math.isinf(self.power):
                shares = np.eye(len(used))[took.argmax(axis=-1)]
            else:
                shares = (took / np.where(norm > 0, norm, 1.0)[:, None]) ** (self.power - 1)
            finish[:, step] = np.where(there, start + norm, ready)
            slopes = start_slopes + np.einsum("pk,pkx->px", shares, took_slopes)
            finish_slopes[:, step] = np.where(there[:, None], slopes, ready_slopes)
        last = finish.argmax(axis=-1)
        total, total_slopes = finish[every, last] + batch.skew_us, finish_slopes[every, last]
        if self.call:
            total = total + costs[names.index(CALL)]
            total_slopes[:, names.index(CALL)] += 1.0
        return total, total_slopes

    def describe(self) -> str:
        owner = {
            "serial": "each rank serves all links in turn",
            "rank": "each rank has links of its own",
            "node": "ranks share their node's link",
        }[self.links]
        shared = {"": "", "node": "; processors are shared by a node", "machine": "; all ranks share processors"}
        joined = "" if not self.cpu else ", added up" if self.power == 1 else ", beside the links"
        knee = f"; from {format_size(round(1024 * self.knee_kib))} in a step on, a KiB between nodes is dearer"
        return owner + shared[self.cpu] + joined + (knee if self.knee_kib else "")


def _norm(took: Floats, power: float) -> Floats:
    largest: Floats = took.max(axis=-1)
    if math.isinf(power):
        return largest
    scaled = took / np.where(largest > 0, largest, 1.0)[..., None]
    whole: Floats = largest * (scaled**power).sum(axis=-1) ** (1 / power)
    return whole
