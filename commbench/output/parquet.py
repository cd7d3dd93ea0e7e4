"""Rows and samples as pandas frames and Parquet files: what plots and other people's notebooks read."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from commbench.analysis import sample_files
from commbench.analysis.ratios import Speedup
from commbench.analysis.sample_files import MeasuredSamples
from commbench.files import atomic_file
from commbench.records import FORMAT_VERSION, Row
from commbench.run_folder import RunFolder

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
_LINES_A_PART = 500_000  # of samples that are in memory at once
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
    """Gather the samples of all finished measurements: one line per (measurement, sample, rank), warm-ups marked.

    Part by part: they may be more than the memory holds.
    """
    attempts: dict[str, set[str]] = {}
    for measurement in folder.measurements():
        attempts.setdefault(measurement.attempt, set()).add(measurement.case_id)
    with atomic_file(folder.path / "samples.parquet") as file, _writer(file, _SAMPLES) as writer:
        part, count = [], 0
        for attempt in sorted(attempts):
            for item in sample_files.read(folder, attempt):
                if item.case_id not in attempts[attempt]:
                    continue
                part += [_batch(item, attempt, warmup=True), _batch(item, attempt, warmup=False)]
                count += part[-2].num_rows + part[-1].num_rows
                if count >= _LINES_A_PART:
                    writer.write_table(pa.Table.from_batches(part))
                    part, count = [], 0
        writer.write_table(pa.Table.from_batches(part, _SAMPLES))


def _batch(item: MeasuredSamples, attempt: str, *, warmup: bool) -> pa.RecordBatch:
    times = item.warmup_us if warmup else item.time_us
    samples, ranks = times.shape
    count = samples * ranks
    return pa.record_batch(
        [
            pa.repeat(item.case_id, count),
            pa.repeat(pa.scalar(item.launch, pa.int32()), count),
            pa.repeat(attempt, count),
            np.repeat(np.arange(samples, dtype=np.int32), ranks),
            np.tile(np.arange(ranks, dtype=np.int32), samples),
            pa.repeat(warmup, count),
            times.ravel(),
            pa.nulls(count, pa.float64()) if warmup else item.host_us.ravel(),
        ],
        schema=_SAMPLES,
    )


def _write(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as file, _writer(file, table.schema) as writer:
        writer.write_table(table)


def _writer(file: IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file, schema.with_metadata({**(schema.metadata or {}), **_METADATA}), write_page_checksum=True
    )
