"""stdout is data: rows as a table with `#` comment lines, as JSON lines, or as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from commbench.analysis.ratios import Speedup
from commbench.output import nccl_tests
from commbench.output.answer.sweep import answer
from commbench.output.grid import AS_FITS, TableStyle
from commbench.output.table import table
from commbench.records import Row
from commbench.serialise import to_json

TABLES = ("table", "markdown")
FORMATS = (*TABLES, "json", "csv", "nccl-tests")


class Writer(Protocol):
    def row(self, row: Row) -> None:
        """A case has finished."""
        ...

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any], ratios: Mapping[str, Speedup]) -> None:
        """The sweep has ended; `rows` are all of its rows in the plan's order, `ratios` are by case id."""
        ...


class JsonWriter:
    """One object a line, as cases finish, and the answer as the last one."""

    def row(self, row: Row) -> None:
        sys.stdout.write(to_json(row) + "\n")
        sys.stdout.flush()

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any], ratios: Mapping[str, Speedup]) -> None:
        sys.stdout.write(json.dumps(answer(rows, ratios, meta).as_dict()) + "\n")
        sys.stdout.flush()


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

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any], ratios: Mapping[str, Speedup]) -> None:
        return None


class TableWriter:
    """A table for people, at the end; awk and pandas (`comment="#"`) read it too, or Markdown reads it."""

    def __init__(self, look: TableStyle = AS_FITS) -> None:
        self._look = look

    def row(self, row: Row) -> None:
        return None

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any], ratios: Mapping[str, Speedup]) -> None:
        sys.stdout.write(table(rows, meta, ratios, self._look))
        sys.stdout.flush()


class NcclTestsWriter:
    """The text of nccl-tests, at the end, for the programs that read it."""

    def row(self, row: Row) -> None:
        return None

    def end(self, rows: Sequence[Row], meta: Mapping[str, Any], ratios: Mapping[str, Speedup]) -> None:
        sys.stdout.write(nccl_tests.write(rows, meta))
        sys.stdout.flush()


def writer(format_: str, columns: str) -> Writer:
    """Return the writer of a format. columns: of a table, as `--columns` has them."""
    if format_ in TABLES:
        return TableWriter(TableStyle(columns=columns, markdown=format_ == "markdown"))
    return _LINES[format_]()


_LINES: dict[str, type[Writer]] = {
    "json": JsonWriter,
    "csv": CsvWriter,
    "nccl-tests": NcclTestsWriter,
}
