"""Forms: which costs there are, and how long a case takes by them.

A step begins when the steps that it names are over. It takes a constant, and then each resource in turn of their
arrival: what was started earlier goes first, so steps that are in flight together share what they both need and
overlap in the rest. A step is over when the slowest of its resources has done its part (`max`), or their sum has
passed (`sum`), where one thread does everything.

A link with a token bucket (what `tc` makes of an emulated link) carries `burst_us` worth of load at once after a rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from commbench.cost_model.loads import COLUMNS, RESOURCES, Batch
from commbench.stats import Floats

# What a cost multiplies; "" where it is a constant.
STEP, CALL, BURST = "step_us", "call_us", "burst_us"
_LINK: dict[str, tuple[int, ...]] = {
    "alpha_intra_us": (1,),
    "beta_intra_us_per_kib": (2,),
    "alpha_inter_us": (3,),
    "beta_inter_us_per_kib": (4,),
}
_REPLY: dict[str, tuple[int, ...]] = {"reply_inter_us": (5,), "reply_inter_us_per_kib": (6,)}
_CPU: dict[str, tuple[int, ...]] = {"cpu_rank_us": (0,), "cpu_message_us": (1, 3), "cpu_us_per_kib": (2, 4)}
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

    @property
    def costs(self) -> tuple[str, ...]:
        """Return names of the parameters, all of them 0 or more, in microseconds or microseconds per KiB."""
        names = [STEP, *_LINK]
        names += list(_REPLY) if self.replies else []
        names += list(_CPU) if self.cpu else []
        names += [BURST] if self.burst else []
        return tuple([*names, CALL] if self.call else names)

    def _rates(self, costs: Floats) -> Floats:
        """Return sets of costs x resources x columns: microseconds per unit of load."""
        names = self.costs
        rates = np.zeros((len(costs), len(RESOURCES), len(COLUMNS)))
        resources = list(RESOURCES)
        for name, columns in {**_LINK, **(_REPLY if self.replies else {})}.items():
            owner = _LINKS[self.links][0 if "intra" in name else 1]
            rates[:, resources.index(owner), columns] = costs[:, [names.index(name)]]
        if self.cpu:
            for name, columns in _CPU.items():
                rates[:, resources.index(f"{self.cpu}_cpu"), columns] = costs[:, [names.index(name)]]
        return rates

    def resources(self) -> list[int]:
        used = {*_LINKS[self.links], *([f"{self.cpu}_cpu"] if self.cpu else [])}
        return [number for number, name in enumerate(RESOURCES) if name in used]

    def time_us(self, costs: Floats, batch: Batch) -> Floats:
        """Return sets of costs x cases. `costs` is sets x parameters."""
        names, used = self.costs, self.resources()
        rows = batch.rows[:, :, used]
        rates = self._rates(costs)[:, used]
        # sets x cases x steps x resources: of the costliest owner
        load_us = np.einsum("pskrc,bkc->bpskr", rows, rates).max(axis=-1)
        loaded = np.asarray(rows.any(axis=(-2, -1)))
        shaped = np.array([list(RESOURCES)[number].endswith("_inter") for number in used])
        burst_us = costs[:, names.index(BURST)] if self.burst else np.zeros(len(costs))
        credit = burst_us[:, None, None] * shaped
        step_us = costs[:, names.index(STEP)][:, None]
        sets, cases, steps = load_us.shape[:3]
        free = -np.broadcast_to(credit, (sets, cases, len(used)))
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

    def describe(self) -> str:
        owner = {
            "serial": "each rank serves all links in turn",
            "rank": "each rank has links of its own",
            "node": "ranks share their node's link",
        }[self.links]
        shared = {"": "", "node": "; processors are shared by a node", "machine": "; all ranks share processors"}
        joined = "" if not self.cpu else ", added up" if self.power == 1 else ", beside the links"
        return owner + shared[self.cpu] + joined


def _norm(took: Floats, power: float) -> Floats:
    largest: Floats = took.max(axis=-1)
    if math.isinf(power):
        return largest
    scaled = took / np.where(largest > 0, largest, 1.0)[..., None]
    whole: Floats = largest * (scaled**power).sum(axis=-1) ** (1 / power)
    return whole
