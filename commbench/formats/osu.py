"""OSU micro-benchmarks: the text that osu_alltoall and its siblings print."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from commbench.errors import UsageError
from commbench.formats.log import Log, lines_of
from commbench.formats.result import MPI_COLLECTIVES, Result, dtype_name, timed

_TITLE = re.compile(r"#\s*OSU \w+(?:-\w+)? (?P<test>.+?) Latency Test(?:\s+v(?P<version>\S+))?", re.IGNORECASE)
_VARIANTS = ("non-blocking", "persistent")
# Mean over ranks of the time inside the call; of a non-blocking test the one without computation beside it.
_TIMES = ("Avg Latency(us)", "Latency(us)", "Latency (us)", "Pure Comm.(us)")


@dataclass
class _Test:
    """What the lines above a table say of it."""

    source: str
    collective: str
    per_rank: bool
    dtype: str | None = None
    columns: list[str] = field(default_factory=list)
    time: str = ""


def read_text(text: str, ranks: int) -> Log:
    """Results of one or several tests in `text`, in its order; `ranks` ran them, which OSU does not print.

    Blocking, non-blocking and persistent collectives, with or without -f, -c, -z and -T. Other tests of OSU, and rows
    that are not as their header says, are passed over, and the log counts them. Raises `UsageError`, with the number of
    the line, where there is nothing else.
    """
    log, hint = Log(), "expected the text of an OSU latency test"
    test: _Test | None = None
    for number, raw in enumerate(lines_of(text), start=1):
        line = raw.strip()
        try:
            if line.startswith("#"):
                if re.match(r"#\s*OSU\b", line):
                    test = None
                    test = _test(line, number)
                elif test and (match := re.match(r"#\s*Datatype:\s*(\w+)", line)):
                    test.dtype = dtype_name(match[1])
                elif test and re.match(r"#\s*Size\b", line):
                    _header(test, line, number)
            elif test and test.columns and line[:1].isdigit():
                log.results.append(_result(test, line, number, ranks))
        except UsageError as error:
            log.passed_over.append(str(error))
            hint = error.hint if len(log.passed_over) == 1 else hint
    log.require_results(hint)
    return log


def _test(line: str, number: int) -> _Test:
    match = _TITLE.match(line)
    words = match["test"].lower() if match else ""
    variant = next((name for name in _VARIANTS if name in words), "")
    name = re.sub(r"personalized exchange|[\s_-]", "", words.replace(variant, ""))
    if match is None or name not in MPI_COLLECTIVES:
        raise UsageError(
            f"line {number}: {line.strip('# ')!r} is not an OSU test that can be compared",
            hint=f"latency tests of collectives with a size: {', '.join(sorted(MPI_COLLECTIVES))}",
        )
    version = f" {match['version']}" if match["version"] else ""
    collective, per_rank = MPI_COLLECTIVES[name]
    return _Test(f"OSU{version}" + (f", {variant}" if variant else ""), collective, per_rank)


def _header(test: _Test, line: str, number: int) -> None:
    """Column names hold single spaces; between columns there are more."""
    test.columns = []
    columns = re.split(r"\s{2,}", line.lstrip("# "))
    test.time = next((name for name in _TIMES if name in columns), "")
    if not test.time:
        raise UsageError(
            f"line {number}: no column of times among {', '.join(columns)}", hint=f"expected one of {', '.join(_TIMES)}"
        )
    test.columns = columns


def _result(test: _Test, line: str, number: int, ranks: int) -> Result:
    cells = line.split()
    values = dict(zip(test.columns, cells, strict=False))
    try:
        if len(cells) != len(test.columns):
            raise ValueError(f"{len(cells)} values")
        size_bytes = int(values["Size"]) * (ranks if test.per_rank else 1)
        time_us = float(values[test.time])
    except ValueError as error:
        raise UsageError(
            f"line {number}: {error} where OSU prints a row of {len(test.columns)}",
            hint=f"expected {', '.join(test.columns)}",
        ) from None
    return timed(
        source=test.source,
        collective=test.collective,
        ranks=ranks,
        size_bytes=size_bytes,
        dtype=test.dtype,
        time_us=time_us,
        wrong={"Pass": 0, "Fail": 1}.get(values.get("Validation", "")),
    )
