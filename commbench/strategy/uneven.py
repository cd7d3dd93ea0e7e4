"""How uneven experts' loads are: of a routing trace, of a program's trace, of a key, or a default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from commbench.collectives import routing_trace
from commbench.errors import UsageError
from commbench.record.folder import read
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.tagged import Tagged

_DEFAULT = Tagged(1.5, "default")
_HINT = 'a routing trace: JSON lines {"counts": [[..], ..]}, or an .npz with experts [steps, ranks, T, K]'


def read_uneven(model: ModelShape, typed: Mapping[str, Any]) -> Tagged | None:
    """Return the tokens of the fullest expert over their mean; None where slots are fixed or there are no experts.

    Raises `UsageError`.
    """
    if not model.moe_layers or model.capacity_factor:
        return None
    if (trace := typed.get("trace")) is not None:
        return Tagged(max(_of_trace(Path(trace), model.experts), 1.0), "measured")
    if (skew := typed.get("skew")) is not None:
        return Tagged(float(skew), "declared")
    return _DEFAULT


def _of_trace(path: Path, experts: int) -> float:
    loads = _sent(path) if path.is_dir() else _counted(path, experts)
    if loads.size == 0 or loads.sum() <= 0:
        raise UsageError(f"trace={path} has no tokens", hint=_HINT)
    if not path.is_dir() and loads.shape[-1] != experts:
        raise UsageError(f"trace={path} has {loads.shape[-1]} experts, and the model {experts}",
                         hint="a trace of this model's router")  # fmt: skip
    steps = loads[loads.sum(axis=-1) > 0]
    return float(np.median(steps.max(axis=-1) / steps.mean(axis=-1)))


def _counted(path: Path, experts: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return tokens of each expert in each step, [steps, experts]."""
    if routing_trace.is_npz(str(path)):
        packed = json.loads(routing_trace.read(str(path)))
        rows = [np.sum(routing_trace.counts(step, 1, experts), axis=0) for step in packed]
        return np.array(rows, dtype=float)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return np.array([np.sum(np.array(line["counts"], dtype=float), axis=0) for line in lines])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"trace={path} cannot be read: {type(error).__name__}: {error}", hint=_HINT) from error


def _sent(folder: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return bytes that ranks received in uneven exchanges of a program's trace, [1, ranks]: its skew over ranks."""
    trace = read(folder)
    received = [np.array(call.received, dtype=float).sum() * call.count for call in trace.calls if call.received]
    ranks = [call.rank for call in trace.calls if call.received]
    totals: dict[int, float] = {}
    for rank, nbytes in zip(ranks, received, strict=True):
        totals[rank] = totals.get(rank, 0.0) + float(nbytes)
    return np.array([list(totals.values())])
