"""stdout is data: rows as a table with `#` comment lines, as JSON lines, or as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from commbench.records import Fabric, Row, Status, to_json
from commbench.units import format_size

FORMATS = ("table", "json", "csv", "nccl-tests")


class Writer(Protocol):
    def row(self, row: Row) -> None:
        """A case has finished."""
        ...

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any]) -> None:
        """The sweep has ended; `rows` are all of its rows in the plan's order."""
        ...


class JsonWriter:
    """One object a line, as cases finish."""

    def row(self, row: Row) -> None:
        sys.stdout.write(to_json(row) + "\n")
        sys.stdout.flush()

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any]) -> None:
        return None


class CsvWriter:
    """A header, then one line a case, as cases finish."""

    def __init__(self) -> None:
        self._begun = False

    def row(self, row: Row) -> None:
        values = dataclasses.asdict(row)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(values), lineterminator="\n")
        if not self._begun:
            writer.writeheader()
            self._begun = True
        writer.writerow({k: json.dumps(v) if isinstance(v, dict) else v for k, v in values.items()})
        sys.stdout.write(buffer.getvalue())
        sys.stdout.flush()

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any]) -> None:
        return None


class TableWriter:
    """A table for people, at the end; awk and pandas (`comment="#"`) read it too."""

    def row(self, row: Row) -> None:
        return None

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any]) -> None:
        sys.stdout.write(table(rows, meta))
        sys.stdout.flush()


class NcclTestsWriter:
    """The text of nccl-tests, at the end, for the programs that read it."""

    def row(self, row: Row) -> None:
        return None

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any]) -> None:
        from commbench.formats import nccl_tests_writer

        sys.stdout.write(nccl_tests_writer.write(rows, meta))
        sys.stdout.flush()


WRITERS: dict[str, type[Writer]] = {
    "table": TableWriter,
    "json": JsonWriter,
    "csv": CsvWriter,
    "nccl-tests": NcclTestsWriter,
}

_COLUMNS = (
    ("size", 10),
    ("algorithm", -18),
    ("time_us", 10),
    ("low", 10),
    ("high", 10),
    ("algbw", 9),
    ("busbw", 9),
    ("bound", 9),
    ("of_bound", 8),
    ("host_us", 9),
    ("samples", 7),
    ("stop", -9),
    ("status", -13),
)


def table(rows: Sequence[Row], meta: Mapping[str, Any]) -> str:
    """Rows in groups that share everything but size and algorithm, smallest size first."""
    lines = [f"# commbench {meta['commbench_version']}, run {meta['run_id']}", f"# {meta['machine_text']}"]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        env = tuple(row.env.items())
        key = (row.transport, row.what, row.dtype, row.mode, row.buffers, row.cache,
               row.nodes, row.ranks, row.groups, row.overlap, env)  # fmt: skip
        groups.setdefault(key, []).append(row)
    for members in groups.values():
        lines += [
            "#",
            f"# {describe(members[0])}",
            f"# {_explain(members)}",
            *_warnings(members, meta),
            "#" + "  ".join(_cell(name, width) for name, width in _COLUMNS)[1:].rstrip(),
        ]
        for row in sorted(members, key=lambda row: row.size_bytes):
            cells = (_cell(text, width) for text, (_, width) in zip(_cells(row), _COLUMNS, strict=True))
            lines.append("  ".join(cells).rstrip())
    failed = [row for row in rows if row.status is not Status.OK and row.reason]
    lines += [f"# {row.status}: {row.label}, {format_size(row.size_bytes)}: {row.reason}" for row in failed]
    return "\n".join(lines) + "\n"


def describe(row: Row) -> str:
    """All that rows of one curve share: `all_reduce op=sum over gloo, fp32, isolated, ..., 2 nodes x 2 ranks`."""
    words = [f"{row.what} over {row.transport}", row.dtype, row.mode]
    words += [f"{row.buffers} buffers", f"{row.cache} cache", describe_layout(row.nodes, row.ranks, row.fabric)]
    words += [f"groups of {row.group_size} ({row.groups})"] if row.groups != "world" else []
    words += [f"beside a {row.overlap}"] if row.overlap != "none" else []
    return ", ".join([*words, *(f"{name}={value}" for name, value in row.env.items())])


def describe_layout(nodes: int, ranks: int, fabric: str) -> str:
    """`2 nodes x 4 ranks, declared on one machine`."""
    text = f"{nodes} node{'s' if nodes > 1 else ''} x {ranks // nodes} ranks"
    return text + (", declared on one machine" if fabric == Fabric.DECLARED else "")


def _warnings(rows: Sequence[Row], meta: Mapping[str, Any]) -> list[str]:
    cpus = len(meta["machine"]["affinity"] or [])
    skews = [row.skew_us / row.time_us for row in rows if row.skew_us and row.time_us and row.mode == "isolated"]
    lines = []
    if rows[0].fabric != Fabric.REAL and 0 < cpus < rows[0].ranks:
        lines.append(f"# warning: {rows[0].ranks} ranks share {cpus} CPUs, so times hold waiting for a CPU")
    if skews and max(skews) > 0.2:
        lines.append(
            f"# warning: ranks leave the barrier up to {100 * max(skews):.0f} % of the time apart; that is in the time"
        )
    return lines


def _explain(rows: Sequence[Row]) -> str:
    ok = [row for row in rows if row.status is Status.OK]
    if not ok:
        return "no case has numbers"
    count = max(row.launches for row in ok)
    launches = f"{count} launch{'es' if count > 1 else ''}"
    if all(row.interval_of == "launches" for row in ok):
        of = f"95 % interval over {launches}"
    elif all(row.interval_of is None for row in ok):
        of = f"no interval: fewer than 6 samples in {launches}"
    else:
        of = f"95 % interval of samples in {launches}; the spread between launches is NOT in it"
    bound = "" if any(row.bound_gbps for row in ok) else "; no bound: no link rate is declared or measured"
    return f"time: slowest rank, median, {of}; bandwidth in GB/s (1e9){bound}"


def _cells(row: Row) -> list[str]:
    size = format_size(row.size_bytes).replace(" ", "")
    if row.status is not Status.OK:
        return [size, row.label.replace(" ", ","), *["-"] * 10, row.status.value]
    bound = "-" if row.bound_gbps is None else _number(row.bound_gbps)
    fraction = "-" if row.bound_fraction is None else f"{100 * row.bound_fraction:.0f}%"
    return [
        size,
        row.label.replace(" ", ","),
        *(_number(value) for value in (row.time_us, row.time_us_low, row.time_us_high, row.algbw_gbps, row.busbw_gbps)),
        bound,
        fraction,
        _number(row.host_us),
        str(row.samples),
        row.stop_reason or "-",
        row.status.value,
    ]


def _number(value: float | None) -> str:
    """Four significant digits, never an exponent."""
    if value is None:
        return "-"
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 10 else 3 if value >= 1 else 4
    return f"{value:.{digits}f}"


def _cell(text: str, width: int) -> str:
    return text.ljust(-width) if width < 0 else text.rjust(width)
