"""rccl-tests: the JSON and the CSV that its -Z (--output-format) writes, read into results."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from commbench.formats import consistency
from commbench.formats.log import Log
from commbench.formats.result import Result, dtype_name

CSV_HEADER = "numCycle,collective,"
_COLLECTIVES = {
    "alltoall": "all_to_all",
    "alltoallv": "all_to_allv",
    "allgather": "all_gather",
    "allreduce": "all_reduce",
    "reducescatter": "reduce_scatter",
}
_HINT = "expected what rccl-tests writes: collective, ranks, size, type, inPlace, time, algBw, busBw, #wrong"


def read_json(text: str) -> Log:
    """Results of a file with one list of objects, or with an object a line, as an unfinished run leaves it."""
    lines = ((number, line.strip().rstrip(",")) for number, line in enumerate(text.splitlines(), start=1))
    return _read((f"line {number}", line) for number, line in lines if line not in ("", "[", "]"))


def read_csv(text: str) -> Log:
    """Results of a file with a header and a row for each result."""
    rows = csv.DictReader(text.strip().splitlines())
    return _read((f"line {number}", row) for number, row in enumerate(rows, start=2))


def _read(items: Iterable[tuple[str, str | Mapping[str, Any]]]) -> Log:
    log = Log()
    for where, item in items:
        try:
            log.results.append(_result(json.loads(item) if isinstance(item, str) else item))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            log.passed_over.append(f"{where}: {problem}")
    log.require_results(_HINT)
    return log


def _result(raw: Mapping[str, Any]) -> Result:
    name = str(raw["collective"]).lower()
    collective, ranks, size = _COLLECTIVES.get(name, name), int(raw["ranks"]), int(raw["size"])
    wrong, op = str(raw["#wrong"]), str(raw.get("redop", "none"))
    shown = [str(raw[key]) for key in ("time", "algBw", "busBw")]
    if not all(math.isfinite(float(value)) for value in shown):
        raise ValueError(f"time {shown[0]}, algBw {shown[1]}, busBw {shown[2]}")
    if problem := consistency.bandwidth_problem(collective, ranks, size, *shown):
        raise ValueError(problem)
    return Result(
        source="rccl-tests",
        collective=collective,
        ranks=ranks,
        size_bytes=size,
        dtype=dtype_name(str(raw["type"])),
        op=None if op == "none" or collective == "sendrecv" else op,
        root=None,
        in_place=str(raw["inPlace"]) == "1",
        time_us=float(shown[0]),
        algbw_gbps=float(shown[1]),
        busbw_gbps=float(shown[2]),
        wrong=None if wrong == "N/A" else int(wrong),
    )
