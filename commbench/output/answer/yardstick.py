"""How near to what is possible: the bound beside a bandwidth, in words."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commbench.output.describe import describe_layout
from commbench.output.grid import number
from commbench.records import Row, Status
from commbench.units import format_size

_NEAR, _USUAL = 0.8, 0.5  # of the bound at the largest sizes: nothing to find; usual for libraries as they come
_MEASURED_ABOVE = 1.02  # of the bound: times and rates are as rounded as their sources give them
REDUCING = "all_reduce: switches that reduce, NVLS or SHARP, allow up to twice as much"


def of_bound(gbps: float, bound_gbps: float, kind: str) -> str:
    """Return `41 GB/s of 57 possible (72 %, nominal)`."""
    label = f", {kind}" if kind else ""
    return f"{gbps:.3g} GB/s of {bound_gbps:.3g} possible ({100 * gbps / bound_gbps:.3g} %{label})"


def above(fraction: float, collective: str = "") -> str:
    """Return what has to be said of a bandwidth above its bound; "" of one that is possible."""
    if fraction <= _MEASURED_ABOVE:
        return ""
    text = f"{100 * fraction:.3g} % of the bound, above what the link rate allows: is link_rate right?"
    return f"{text} ({REDUCING})" if collective == "all_reduce" else text


def sentence(rows: Sequence[Row]) -> str:
    """Return how near to its bound the best of these rows, of one set-up, comes at the largest size; "" without one."""
    known = [row for row in rows if row.status is Status.OK and row.busbw_gbps and row.bound_gbps]
    if not known:
        return ""
    largest = max(row.size_bytes for row in known)
    best = max((row for row in known if row.size_bytes == largest), key=lambda row: row.bound_fraction or 0.0)
    reached = of_bound(best.busbw_gbps or 0.0, best.bound_gbps or 1.0, best.bound_kind)
    return f"{best.label} reaches {reached} at {format_size(largest)}"


def sentences(rows: Sequence[Row]) -> list[str]:
    """Return that sentence for each call and layout: `direct reaches .. at 1 GiB`, with a name where there are more."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        layout = describe_layout(row.nodes, row.ranks, row.fabric)
        groups.setdefault(
            f"{row.what} over {row.transport}, {layout}{f', {row.link} links' if row.link else ''}", []
        ).append(row)
    found = {where: text for where, members in groups.items() if (text := sentence(members))}
    return list(found.values()) if len(groups) == 1 else [f"{where}: {text}" for where, text in found.items()]


def warning(rows: Sequence[Row]) -> str:
    """Return the worst row above its bound, in words; "" where all are possible."""
    bounded = [row for row in rows if row.status is Status.OK and row.bound_fraction]
    worst = max(bounded, key=lambda row: row.bound_fraction or 0.0, default=None)
    if worst is None or not (text := above(worst.bound_fraction or 0.0, worst.collective)):
        return ""
    return f"{worst.label} at {format_size(worst.size_bytes)} shows {text}"


def table(rows: Sequence[Mapping[Any, Any]], paths: Sequence[Path]) -> str:
    """Return logs of other programs, rows as `foreign.alone` makes them, beside what their links allow.

    Each test ends with the answer: how near the largest size comes; all of them with the next step.
    """
    tests: dict[tuple[Any, ...], list[Mapping[Any, Any]]] = {}
    for row in rows:
        key = tuple(
            row[name] for name in ("run", "transport", "what", "nodes", "ranks", "dtype", "mode", "groups", "env")
        )
        tests.setdefault(key, []).append(row)
    lines: list[str] = []
    for (run, source, what, nodes, ranks, dtype, *_), test in tests.items():
        lines += ["#"] if lines else []
        lines.append(f"# {run}: {what}, {source}, {describe_layout(nodes, ranks, '')}, {dtype}")
        lines.append(f"#{'size':>9}  {'time_us':>10}  {'busbw':>9}  {'bound':>9}  of_bound")
        test.sort(key=lambda row: row["size_bytes"])
        for row in test:
            numbers = "  ".join(
                [_number(row["time_us"], 10), _number(row["busbw_gbps"], 9), _number(row["bound_gbps"], 9)]
            )
            share = f"{'-':>8}" if math.isnan(_share(row)) else f"{100 * _share(row):7.0f}%"
            wrong = "" if row["status"] == Status.OK.value else f"  {row['status']}"
            lines.append(f"{format_size(row['size_bytes']).replace(' ', ''):>10}  {numbers}  {share}{wrong}")
        lines += _answer(test)
    step, command = _next([_largest(test) for test in tests.values()], paths)
    return "\n".join([*lines, f"# next: {step}: {command}"]) + "\n"


def _largest(test: Sequence[Mapping[Any, Any]]) -> Mapping[Any, Any]:
    """Return the largest size that has a right result, and a bound where any has; else the largest of all."""
    right = [row for row in test if row["status"] == Status.OK.value]
    bounded = [row for row in right if not math.isnan(_share(row))]
    return max(bounded or right or test, key=lambda row: int(row["size_bytes"]))


def _answer(test: Sequence[Mapping[Any, Any]]) -> list[str]:
    right = [row for row in test if row["status"] == Status.OK.value]
    largest = _largest(test)
    at = f"at {format_size(largest['size_bytes'])}"
    if not right or math.isnan(largest["busbw_gbps"]):
        return [f"# answer: no size has {'a right result' if not right else 'a bandwidth'}"]
    if math.isnan(_share(largest)):
        return [f"# answer: {largest['busbw_gbps']:.3g} GB/s {at}; nobody has said what its links allow"]
    lines = [f"# answer: {of_bound(largest['busbw_gbps'], largest['bound_gbps'], largest['bound_kind'])} {at}"]
    worst = max((row for row in right if not math.isnan(_share(row))), key=_share)
    if text := above(_share(worst), worst["collective"]):
        lines.append(f"# warning: {format_size(worst['size_bytes'])} shows {text}")
    return lines


def _next(largest: Sequence[Mapping[Any, Any]], paths: Sequence[Path]) -> tuple[str, str]:
    """Return what to do after a log was read, and the command: by the test that is farthest from its bound."""
    files = [str(path) for path in paths]
    bounded = [row for row in largest if not math.isnan(_share(row))]
    if not bounded:
        rate = "intra=450GBps" if largest[0]["nodes"] == 1 else "inter=8x400gbit"
        return "say what your links carry, as in", shlex.join(["commbench", "plot", *files, "--link-rate", rate])
    share, on_gpus = min(map(_share, bounded)), "ccl" in bounded[0]["transport"]
    if max(map(_share, bounded)) > _MEASURED_ABOVE:
        return "count links and cards on that machine", "commbench topo"
    if share >= _NEAR:
        return "nothing to repair; compare a later log with it", shlex.join(["commbench", "compare", files[0], "LATER"])
    if share >= _USUAL:
        return (
            "try other algorithms and settings on that machine",
            f"commbench tune {'gpu' if on_gpus else 'transport=mpi'} --out p.json",
        )
    return "look for what is slow on that machine", f"commbench sweep pairs transport={'nccl' if on_gpus else 'mpi'}"


def _share(row: Mapping[Any, Any]) -> float:
    """Return the part of the bound that a row reaches; nan without one."""
    return float(row["bound_gbps"] and row["busbw_gbps"] / row["bound_gbps"])


def _number(value: float, width: int) -> str:
    return f"{number(None if math.isnan(value) else value):>{width}}"
