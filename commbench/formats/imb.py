"""Intel MPI Benchmarks (IMB-MPI1, IMB-NBC): the text of their collectives."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from commbench.errors import UsageError
from commbench.formats.log import Log, lines_of
from commbench.formats.result import MPI_COLLECTIVES, Result, dtype_name, timed

HEADER = re.compile(r"#\s*Benchmarking\s+\w+")
_REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter")
# Mean over ranks, as OSU's; of a non-blocking test (IMB-NBC) the time of the call without computation beside it.
_TIMES = ("t_avg[usec]", "t_pure[usec]")


@dataclass
class _Test:
    """What the lines above a table say of it."""

    collective: str
    per_rank: bool
    variant: str
    ranks: int = 0
    groups: int = 1
    columns: list[str] = field(default_factory=list)


def read_text(text: str) -> Log:
    """Results of the collectives in `text`, one for each row; other benchmarks and odd rows are passed over.

    Raises `UsageError`, with the number of the line, where there is nothing else.
    """
    log, types, source = Log(), {"moves": "uint8", "reductions": "fp32"}, "IMB"
    test: _Test | None = None
    for number, raw in enumerate(lines_of(text), start=1):
        line = " ".join(raw.split())  # tabs, where it went through a spreadsheet
        if match := re.match(r"#.*MPI Benchmark(?:s| Suite) V?(\d\S*?),", line):
            source = f"IMB {match[1]}"
        elif match := re.match(r"#\s*MPI_Datatype( for reductions)?\s*:\s*(\w+)", line):
            types["reductions" if match[1] else "moves"] = dtype_name(match[2])
        elif match := re.match(r"#\s*Benchmarking (\w+)", line):
            test = _test(match[1])
            if test is None:
                log.passed_over.append(f"line {number}: {match[1]} is not a collective that can be compared")
        elif test and (match := re.match(r"# ?\(? ?#processes = (\d+)", line)):
            test.ranks = int(match[1])
        elif test and (match := re.match(r"#\s*\( (\d+) groups of (\d+) processes", line)):
            test.groups, test.ranks = int(match[1]), int(match[2])
        elif test and line.startswith("#bytes"):
            test.columns = line.lstrip("#").split()
        elif test and test.columns and line[:1].isdigit():
            try:
                dtype = types["reductions" if test.collective in _REDUCTIONS else "moves"]
                log.results.append(_result(test, source, dtype, line.split()))
            except ValueError as error:
                log.passed_over.append(f"line {number}: {error} where IMB prints {' '.join(test.columns)}")
    log.require_results(f"collectives that can be compared: {', '.join(MPI_COLLECTIVES)}")
    return log


def _test(name: str) -> _Test | None:
    plain = name.lower().replace("_", "")
    variant = ", non-blocking" if plain not in MPI_COLLECTIVES and plain.startswith("i") else ""
    found = MPI_COLLECTIVES.get(plain.removeprefix("i") if variant else plain)
    return _Test(*found, variant) if found else None


def _result(test: _Test, source: str, dtype: str | None, cells: list[str]) -> Result:
    time_column = next((name for name in _TIMES if name in test.columns), None)
    if time_column is None:
        raise UsageError(f"no column of times among {', '.join(test.columns)}", hint=f"expected {_TIMES[0]}")
    if len(cells) < len(test.columns) or not test.ranks:
        raise ValueError(f"{len(cells)} values of {test.ranks} ranks")
    values = dict(zip(test.columns, cells, strict=False))
    size_bytes = int(values["bytes"]) * (test.ranks if test.per_rank else 1)
    time_us = float(values[time_column])
    defects = values.get("defects")
    return timed(
        source=source + test.variant,
        collective=test.collective,
        ranks=test.ranks,
        size_bytes=size_bytes,
        dtype=dtype,
        time_us=time_us,
        wrong=None if defects is None else int(float(defects) > 0),
        groups=f"{test.groups} communicators" if test.groups > 1 else "world",
    )
