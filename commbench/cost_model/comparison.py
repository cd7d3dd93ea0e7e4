"""A fitted model beside what it was fitted to: each case with its measured and its predicted time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from commbench.cost_model.model import Model
from commbench.cost_model.observe import Observation


def measured_us(observation: Observation) -> float:
    return float(np.median(observation.launches_us))


def as_json(fitted: Model, observations: Sequence[Observation]) -> dict[str, object]:
    """Return the model, and each case with its measured and its predicted time in microseconds."""
    cases = []
    predictions = fitted.predictions([observation.case for observation in observations])
    for observation, found in zip(observations, predictions, strict=True):
        case = observation.case
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
                "time_us": measured_us(observation),
                "predicted_us": found.time_us if found else None,
                "predicted_us_low": found.low_us if found else None,
                "predicted_us_high": found.high_us if found else None,
                "warning": found.warning if found else None,
            }
        )
    return {"r2": fitted.r2, "model": fitted.as_dict(), "cases": cases}
