"""Results of other programs as rows that plots draw beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from commbench.analysis import bounds
from commbench.analysis.bounds import Rates
from commbench.formats.result import Result, busbw_factor
from commbench.records import Status
from commbench.units import gbps

if TYPE_CHECKING:
    import pandas as pd


# What tells whether two measurements are of the same thing, whether or not it tells figures apart.
_MATCHED = ("collective", "arguments", "in_place", "ranks", "groups", "overlap", "dtype")


def beside(
    results: Sequence[Result], label: str, ours: pd.DataFrame, keys: Sequence[str], rates: Rates | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Rows for the figures of `ours` that compare with `results`, and in words what no figure compares with.

    `ours` is of `tables.frame`, and `keys` are its columns that tell figures apart. Each result is drawn in every
    figure that has rows of its collective, ranks and place of the output, captured in a graph or not like it, if there
    are such in those of its dtype only. Its name says what it is, and in the end `label`. Like ours, bandwidth (GB/s)
    is computed from the time (us). Intervals are None. `rates` of links give bounds.
    """
    import pandas as pd

    columns = list(dict.fromkeys([*keys, *_MATCHED]))
    figures: list[dict[Any, Any]] = (
        ours[ours["status"] == Status.OK.value][columns].drop_duplicates().to_dict("records")
    )
    rows: list[dict[Any, Any]] = []
    left_out = set()
    for result in results:
        fitting = [figure for figure in figures if _compares(result, figure)]
        of_dtype = [figure for figure in fitting if figure["dtype"] == result.dtype]
        if not fitting:
            place = " in place" if result.in_place else ""
            place += " in a graph" if result.graph else ""
            left_out.add(f"{result.collective or 'unnamed collective'}{place} on {result.ranks or 'unknown'} ranks")
        elif result.size_bytes:  # nccl-tests rounds sizes down, to 0 where there are too few bytes for all ranks
            numbers = _numbers(result, rates or {})
            dtype = f", {result.dtype}" if result.dtype and not of_dtype else ""
            texts = {"label": f"{result.source}{dtype} ({label})", "run": label}
            rows += [{**figure, **numbers, **texts} for figure in of_dtype or fitting]
    return pd.DataFrame(rows, columns=[*columns, *_NUMBERS, "label", "run"]), sorted(left_out)


_NUMBERS = (
    *("status", "launches", "size_bytes", "time_us", "time_us_low", "time_us_high", "interval_of"),
    *("algbw_gbps", "busbw_gbps", "bound_gbps", "bound_us", "bound_kind", "wrong"),
)


def _compares(result: Result, figure: Mapping[Any, Any]) -> bool:
    return result.is_of(
        **{name: figure[name] for name in ("collective", "ranks", "in_place", "groups", "overlap")},
        graph=figure.get("mode") == "graph",
        arguments=json.loads(figure["arguments"]),
    )


def _numbers(result: Result, rates: Rates) -> dict[str, Any]:
    least = bounds.of_result(result, rates)
    algbw, busbw = result.algbw_gbps, result.busbw_gbps
    factor = busbw_factor(result.collective or "", result.ranks or 1)
    if result.time_us and factor is not None:
        algbw = gbps(result.size_bytes, result.time_us)
        busbw = algbw * factor
    unknown = float("nan")
    return {
        "status": (Status.WRONG_RESULT if result.wrong else Status.OK).value,
        "launches": 1,
        "size_bytes": result.size_bytes,
        "time_us": result.time_us or unknown,
        "time_us_low": unknown,
        "time_us_high": unknown,
        "interval_of": None,
        "algbw_gbps": unknown if algbw is None else algbw,
        "busbw_gbps": unknown if busbw is None else busbw,
        "bound_gbps": bounds.bound_gbps(result, least) or unknown,
        "bound_us": least.us if least else unknown,
        "bound_kind": least.kind if least else "",
        "wrong": result.wrong,
    }
