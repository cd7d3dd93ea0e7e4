"""What a cost model was fitted to, as a table: cases with their measured and their predicted times."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from commbench.cost_model.comparison import measured_us
from commbench.cost_model.costs import Prediction
from commbench.cost_model.model import Model
from commbench.cost_model.observe import Observation, describe_setting, setting
from commbench.output.grid import AS_FITS, Column, TableStyle, folded, grid, number, refolded
from commbench.units import format_size


class _Alike(NamedTuple):
    """Cases of the same size, layout and name: the rounds of pairs, say."""

    size_bytes: int
    layout: str
    what: str
    cases: int
    measured_us: float  # medians
    model_us: float | None  # None where the model says nothing
    error: float | None


def columns() -> list[Column[_Alike]]:
    return [
        Column(name="size", text=lambda row: format_size(row.size_bytes).replace(" ", "")),
        Column(name="layout", text=lambda row: row.layout.replace(" ", ""), left=True, once=True),
        Column(name="what", text=lambda row: row.what.replace(" ", ","), left=True),
        Column(name="cases", text=lambda row: str(row.cases), once=True, goes=1),
        Column(name="measured_us", text=lambda row: number(row.measured_us)),
        Column(name="model_us", text=lambda row: number(row.model_us)),
        Column(name="error", text=lambda row: "-" if row.error is None else f"{100 * row.error:+.1f}%"),
    ]


def table(fitted: Model, observations: Sequence[Observation], look: TableStyle = AS_FITS) -> str:
    """Return the costs in words, then each observation beside its prediction; alike rounds of pairs as one line.

    Where there are several settings, a line of words comes before the cases of each.
    """
    lines = refolded([f"# {line}" for line in fitted.describe()])
    settings: dict[str, list[Observation]] = {}
    for observation in observations:
        settings.setdefault(setting(observation.case), []).append(observation)
    for of_setting in settings.values():
        laid = grid(columns(), _rows(fitted, of_setting), look)
        lines += folded(describe_setting(of_setting[0].case)) if len(settings) > 1 else []
        lines += [*itertools.chain(*map(folded, laid.notes)), *laid.framed(look)]
    return "\n".join(lines) + "\n"


def _rows(fitted: Model, observations: Sequence[Observation]) -> list[_Alike]:
    """Return the rows of one setting."""
    groups: dict[tuple[str, str, int], list[tuple[Observation, Prediction | None]]] = {}
    predictions = fitted.predictions([observation.case for observation in observations])
    for observation, prediction in zip(observations, predictions, strict=True):
        case = observation.case
        name = f"{case.collective} {case.label}"
        group = groups.setdefault((name, str(case.setup.layout), case.size_bytes), [])
        group.append((observation, prediction))
    rows = []
    for (name, layout, size), members in groups.items():
        known = [(item, found) for item, found in members if found]
        errors = [found.time_us / measured_us(item) - 1 for item, found in known]
        rows.append(
            _Alike(
                size_bytes=size,
                layout=layout,
                what=name,
                cases=len(members),
                measured_us=float(np.median([measured_us(item) for item, _ in members])),
                model_us=float(np.median([found.time_us for _, found in known])) if known else None,
                error=float(np.median(errors)) if known else None,
            )
        )
    return rows
