"""Measurements that are kept in a file as they end, so that a bench which was stopped goes on from there."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from commbench.stats import interval


def by_launch(
    path: Path, kinds: Iterable[tuple[Hashable, ...]], launches: int, measure: Callable[..., Any]
) -> dict[tuple[Hashable, ...], list[Any]]:
    """Return `measure(*kind)` of each launch by kind: all kinds in turn, then again, as the machine changes with time.

    What the file has of them is not measured again; what is measured is in it at once.
    """
    path.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(line["launch"], *line["kind"]): line["found"] for line in lines}
    found: dict[tuple[Hashable, ...], list[Any]] = defaultdict(list)
    kinds = list(kinds)
    with open(path, "a") as file:
        for launch in range(launches):
            for kind in kinds:
                if (launch, *kind) not in known:
                    known[(launch, *kind)] = measure(*kind)
                    line = {"launch": launch, "kind": kind, "found": known[(launch, *kind)]}
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                found[kind].append(known[(launch, *kind)])
    return found


def said(launches: Iterable[float], digits: int = 2) -> str:
    """Return the median of values of launches with its 95 % interval: `7.1 [6.9, 7.4]`."""
    values = [np.array([value]) for value in launches]
    between = interval(values)
    median = float(np.median(values))
    return f"{median:.{digits}f} " + (f"[{between.low:.{digits}f}, {between.high:.{digits}f}]" if between else "[-]")
