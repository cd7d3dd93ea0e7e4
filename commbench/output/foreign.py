"""Results of other programs as rows that plots draw beside ours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commbench import __version__
from commbench.analysis import bounds
from commbench.analysis.bounds import Rates
from commbench.analysis.ratios import Speedup
from commbench.errors import UsageError
from commbench.formats.result import Result, busbw_factor
from commbench.records import Fabric, Row, Status
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


def alone(results: Sequence[Result], path: Path, rates: Rates) -> pd.DataFrame:
    """Return rows for figures of their own, and for a table: a log without a run to be drawn beside.

    Raises `UsageError` where ranks or nodes are known of no line, which title and bound need.
    """
    import pandas as pd

    rows = []
    placed = [result for result in results if result.ranks and result.nodes]
    if not placed:
        lacking = "nodes" if all(result.ranks for result in results) else "ranks"
        raise UsageError(f"{path} does not say how many {lacking} there were", hint=f"say it: --{lacking} N")
    for result in placed:
        assert result.ranks is not None and result.nodes is not None
        if not result.size_bytes:
            continue
        words = [result.collective or "unnamed collective", *(["in place"] if result.in_place else [])]
        words += [f"op={result.op}"] if result.op not in (None, "sum") else []
        rows.append({
            **{f.name: None for record in (Row, Speedup) for f in dataclasses.fields(record)},
            **_numbers(result, rates),
            "collective": result.collective, "what": " ".join(words), "in_place": bool(result.in_place),
            "transport": result.source, "algorithm": "", "params": "{}", "arguments": "{}",
            "ranks": result.ranks, "nodes": result.nodes, "groups": result.groups, "group_size": result.ranks,
            "overlap": result.overlap, "fabric": (Fabric.REAL if result.nodes > 1 else Fabric.NONE).value,
            "dtype": result.dtype or "bytes", "mode": "graph" if result.graph else "pipelined", "buffers": "plain",
            "cache": "warm", "env": result.setting, "label": path.name, "run": path.name,
        })  # fmt: skip
    return pd.DataFrame(rows)


def about(files: Sequence[Path]) -> dict[str, Any]:
    """Return what run.json would say of logs alone, as far as captions need it."""
    names = ", ".join(path.name for path in files)
    written = datetime.fromtimestamp(files[0].stat().st_mtime, UTC).isoformat()
    return {"commbench_version": __version__, "run_id": names, "machine_text": f"from {names}", "started": written,
            "machine": {}, "pairs": {}, "partial": ""}  # fmt: skip


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
