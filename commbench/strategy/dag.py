"""Walk over a DAG of tasks, each on one resource that serves tasks in the order in which they are issued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from commbench.stats import Floats


@dataclass(frozen=True, slots=True)
class LayerTask:
    """A task of a pass. resource: `compute`, `exchange`, `near` (links inside nodes). us: [d, n]. after: names.

    holds: how long the resource is taken; None: as long as the task takes.
    """

    name: str
    resource: str
    us: Floats
    after: tuple[str, ...] = ()
    holds: Floats | None = None


def finish(tasks: Sequence[LayerTask]) -> Floats:
    """Return when the last task is over, [d, n]; they begin as soon as those in `after` and their resource allow.

    Raises `KeyError` for a task that waits for one that is issued later.
    """
    ends: dict[str, Floats] = {}
    free: dict[str, Floats] = {}
    for task in tasks:
        begin = free.get(task.resource, np.zeros(1))
        for name in task.after:
            begin = np.maximum(begin, ends[name])
        ends[task.name] = begin + task.us
        free[task.resource] = begin + (task.us if task.holds is None else task.holds)
    last = np.zeros(1)
    for end in ends.values():
        last = np.maximum(last, end)
    return np.asarray(last)
