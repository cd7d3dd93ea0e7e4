"""A fitted model beside what it was fitted to: each case with its measured and its predicted time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from commbench.cost_model.model import Model
from commbench.cost_model.observe import Observation, describe_setting, setting
from commbench.records import Case
from commbench.units import format_size


def _measured_us(observation: Observation) -> float:
    return float(np.median(observation.launches_us))


def as_json(fitted: Model, observations: Sequence[Observation]) -> dict[str, object]:
    """Return the model, and each case with its measured and its predicted time in microseconds."""
    cases = []
    for observation in observations:
        case, found = observation.case, fitted.predict(observation.case)
        cases.append(
            {
                "case_id": case.case_id,
                "collective": case.collective,
                "algorithm": case.algorithm,
                "params": case.params,
                "nodes": case.setup.nodes,
                "ranks_per_node": case.setup.ranks_per_node,
                "fabric": observation.fabric,
                "size_bytes": case.size_bytes,
                "time_us": _measured_us(observation),
                "predicted_us": found.time_us if found else None,
                "predicted_us_low": found.low_us if found else None,
                "predicted_us_high": found.high_us if found else None,
                "warning": found.warning if found else None,
            }
        )
    return {"r2": fitted.r2, "model": fitted.as_dict(), "cases": cases}


def table(fitted: Model, observations: Sequence[Observation]) -> str:
    """Return the costs in words, then each observation beside its prediction; alike rounds of pairs as one line.

    Where there are several settings, a line of words comes before the cases of each.
    """
    lines = [f"# {line}" for line in fitted.describe()]
    settings: dict[str, list[Observation]] = {}
    for observation in observations:
        settings.setdefault(setting(observation.case), []).append(observation)
    width = max(len(_name(observation.case)) for observation in observations)
    lines.append(
        f"#{'size':>9}  {'layout':<7} {'what':<{width}}  {'cases':>5}  "
        f"{'measured_us':>11}  {'model_us':>10}  {'error':>7}"
    )
    for of_setting in settings.values():
        lines += [f"# {describe_setting(of_setting[0].case)}"] if len(settings) > 1 else []
        lines += _cases(fitted, of_setting, width)
    return "\n".join(lines) + "\n"


def _name(case: Case) -> str:
    return f"{case.collective} {case.label}"


def _cases(fitted: Model, observations: Sequence[Observation], width: int) -> list[str]:
    """Return the lines of one setting."""
    groups: dict[tuple[str, str, int], list[Observation]] = {}
    for observation in observations:
        case = observation.case
        groups.setdefault((_name(case), str(case.setup.layout), case.size_bytes), []).append(observation)
    lines = []
    for (name, layout, size), members in groups.items():
        known = [(item, found) for item in members if (found := fitted.predict(item.case))]
        measured = float(np.median([_measured_us(item) for item in members]))
        head = f"{format_size(size).replace(' ', ''):>10}  {layout:<7} {name:<{width}}  "
        head += f"{len(members):>5}  {measured:11.4g}"
        if known:
            errors = [found.time_us / _measured_us(item) - 1 for item, found in known]
            model_us = float(np.median([found.time_us for _, found in known]))
            lines.append(f"{head}  {model_us:10.4g}  {100 * float(np.median(errors)):+6.1f}%")
        else:
            lines.append(f"{head}  {'-':>10}  {'-':>7}")
    return lines
