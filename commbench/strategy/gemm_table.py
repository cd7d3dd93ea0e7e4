"""GemmTable: what matrix products of some sizes were measured to reach, and by it those of other sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commbench.errors import UsageError
from commbench.stats import Floats

_NEAREST = 4
_HINT = 'a JSON line for each product: {"m": 4096, "n": 8192, "k": 8192, "tflops": 620}; "groups" for experts'


@dataclass(frozen=True, slots=True)
class GemmTable:
    """Measured products. sizes: logarithms of m, n, k, [p, 3]. flop_us: FLOP in a microsecond, [p].

    grouped: whether a product is of several experts, [p].
    """

    sizes: Floats
    flop_us: Floats
    grouped: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    def at(self, m: Floats, n: Floats, k: Floats, *, grouped: bool) -> Floats | None:
        """Return FLOP in a microsecond of products [m, k] x [k, n]: of the nearest four on logarithmic scales, each by
        the inverse of its distance; None where none of the kind was measured."""
        mine = self.grouped == grouped
        if not mine.any():
            return None
        wanted = np.log(np.maximum(np.stack(np.broadcast_arrays(m, n, k), axis=-1), 1.0))
        away = np.linalg.norm(wanted[..., None, :] - self.sizes[mine], axis=-1)
        places = np.argsort(away, axis=-1)[..., :_NEAREST]
        weight = 1 / (np.take_along_axis(away, places, axis=-1) + 1e-3)
        rates = np.log(self.flop_us[mine])[places]
        found: Floats = np.exp((weight * rates).sum(axis=-1) / weight.sum(axis=-1))
        return found


def read_gemm(path: Path) -> GemmTable:
    """Read a file of products, one JSON object a line. Raises `UsageError`."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UsageError(f"gemm={path}: {error}", hint=_HINT) from error
    products = [row for row in rows if isinstance(row, dict) and "tflops" in row]
    if not products:
        raise UsageError(f"gemm={path} has no product", hint=_HINT)
    numbers = [[_number(path, row, name) for name in ("m", "n", "k", "tflops")] for row in products]
    grouped = np.array([_number(path, {"groups": 1, **row}, "groups") > 1 for row in products])
    return GemmTable(np.log(np.array(numbers)[:, :3]), np.array(numbers)[:, 3] * 1e6, grouped)


def _number(path: Path, row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"gemm={path}: {name} is {value!r} in {json.dumps(dict(row))[:60]}", hint=_HINT)
    return float(value)
