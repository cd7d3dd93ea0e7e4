"""Rows and samples as pandas frames and Parquet files: what plots and other people's notebooks read."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from commbench.analysis.ratios import Speedup
from commbench.files import atomic_file
from commbench.records import FORMAT_VERSION, Row
from commbench.run_folder import RunFolder, read_lines

_SAMPLES = pa.schema(
    [
        ("case_id", pa.string()),
        ("launch", pa.int32()),
        ("attempt", pa.string()),
        ("sample", pa.int32()),
        ("rank", pa.int32()),
        ("warmup", pa.bool_()),
        ("time_us", pa.float64()),
        ("host_us", pa.float64()),
    ]
)
_TEXTS = ("run", "label", "what")  # columns that a row itself does not have
_METADATA = {b"commbench_format": str(FORMAT_VERSION).encode()}


def frame(rows: Sequence[Row], run_id: str, ratios: Mapping[str, Speedup] | None = None) -> pd.DataFrame:
    """One line per row: the columns of `Row` (dictionaries as text), `run`, `label`, `what`, and those of `Speedup`.

    `ratios` are by case id; where a case has none, their columns are None.
    """
    lines = []
    for row in rows:
        line = dataclasses.asdict(row)
        line["params"] = json.dumps(row.params)
        line["arguments"] = json.dumps(row.arguments)
        line["env"] = " ".join(f"{name}={value}" for name, value in row.env.items())
        line["status"] = row.status.value
        lines.append({**line, "run": run_id, "label": row.label, "what": row.what})
        if ratios and row.case_id in ratios:
            lines[-1] |= dataclasses.asdict(ratios[row.case_id])
    columns = [*(f.name for f in dataclasses.fields(Row)), *_TEXTS, *(f.name for f in dataclasses.fields(Speedup))]
    return pd.DataFrame(lines, columns=columns)


def write_results(folder: RunFolder, rows: Sequence[Row], ratios: Mapping[str, Speedup]) -> None:
    """Every column has its type in every run, whether it has values or not, so that runs can be read together."""
    schema = pa.schema([*_arrow_fields(Row), *((name, pa.string()) for name in _TEXTS), *_arrow_fields(Speedup)])
    _write(
        pa.Table.from_pandas(frame(rows, folder.run_id, ratios), schema=schema, preserve_index=False),
        folder.path / "results.parquet",
    )


def _arrow_fields(record: type[Row] | type[Speedup]) -> list[tuple[str, pa.DataType]]:
    hints = typing.get_type_hints(record)
    return [(field.name, _arrow_type(hints[field.name])) for field in dataclasses.fields(record)]


def _arrow_type(hint: typing.Any) -> pa.DataType:
    """Return the type of a column: dictionaries are written as text."""
    kinds = {hint} if typing.get_origin(hint) is dict else set(typing.get_args(hint)) or {hint}
    if hint is bool:
        return pa.bool_()
    return pa.float64() if float in kinds else pa.int64() if int in kinds else pa.string()


def write_samples(folder: RunFolder) -> None:
    """Gather the samples of all finished measurements: one line per (measurement, sample, rank), warm-ups marked."""
    finished = {(m.attempt, m.case_id) for m in folder.measurements()}
    columns: dict[str, list[object]] = {name: [] for name in _SAMPLES.names}
    for path in sorted((folder.path / "samples").glob("*.jsonl")):
        for raw in read_lines(path, json.loads):
            if (path.stem, raw["case_id"]) not in finished:
                continue
            for name, is_warmup in (("warmup_us", True), ("time_us", False)):
                for sample, times in enumerate(raw[name]):
                    for rank, time_us in enumerate(times):
                        host = None if is_warmup else raw["host_us"][sample][rank]
                        values = (raw["case_id"], raw["launch"], path.stem, sample, rank, is_warmup, time_us, host)
                        for column, value in zip(columns.values(), values, strict=True):
                            column.append(value)
    _write(pa.table(columns, schema=_SAMPLES), folder.path / "samples.parquet")


def _write(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as file:
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **_METADATA}), file)
