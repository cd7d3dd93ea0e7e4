"""The folder of a trace: `trace.json`, `calls.parquet`, `steps.parquet`, `recipe.yaml`, written once, read with care.

A folder whose writer was killed has what the ranks had written until then, in `ranks/`; reading it makes the trace.
"""

from __future__ import annotations

import json
import shutil
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commbench.errors import CommbenchError, CorruptFile, UsageError
from commbench.files import Lock, atomic_file, write_atomically
from commbench.record import rank_file, trace
from commbench.record.consolidate import consolidate
from commbench.record.rank_file import RankRecord
from commbench.record.trace import ProgramTrace, TracedCalls, TracedStep
from commbench.serialise import STORED_AS, as_dict, from_dict, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

ABOUT, CALLS, STEPS, RECIPE = "trace.json", "calls.parquet", "steps.parquet", "recipe.yaml"
_BEGUN = "recording.json"  # what is known when the program starts; goes when the trace is whole
_LOCK = ".lock"  # held while the program runs
_STRIDE = "stride"  # of a group: follows from its ranks


class Recording(NamedTuple):
    """A trace that is being recorded."""

    path: Path
    about: dict[str, Any]  # fields of the trace that ranks do not know
    lock: Lock

    def records(self) -> list[RankRecord]:
        return rank_file.read_all(self.path)


def begin(path: Path, **about: Any) -> Recording:
    """Make the folder, and hold it. Raises `UsageError` where it is in use, or has something in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = Lock(path / _LOCK)
        if not lock.take():
            raise UsageError(f"{str(path)!r} is in use: another recording writes there", hint="--out another folder")
        if any(one.name != _LOCK for one in path.iterdir()):
            lock.release()
            raise UsageError(f"{str(path)!r} is not empty", hint="a recording is one folder: --out a new one")
        (path / rank_file.FOLDER).mkdir()
        write_atomically(path / _BEGUN, json.dumps(about))
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}", hint="--out a folder of yours") from error
    return Recording(path, about, lock)


def finish(recording: Recording, made: ProgramTrace, recipe: str) -> None:
    """Write the trace, and remove what ranks have left."""
    import pyarrow.parquet as pq

    path = recording.path
    for name, table in ((CALLS, _table(made.calls, TracedCalls)), (STEPS, _table(made.steps, TracedStep))):
        with atomic_file(path / name) as file:
            pq.write_table(table, file)
    write_atomically(path / RECIPE, recipe)
    write_atomically(path / ABOUT, json.dumps(_about(made), indent=1) + "\n")
    (path / _BEGUN).unlink(missing_ok=True)
    shutil.rmtree(path / rank_file.FOLDER, ignore_errors=True)
    recording.lock.release()


def abandon(recording: Recording) -> None:
    """Remove a folder into which no rank has written."""
    recording.lock.release()
    for name in (_BEGUN, _LOCK):
        (recording.path / name).unlink(missing_ok=True)
    for empty in (recording.path / rank_file.FOLDER, recording.path):
        try:
            empty.rmdir()
        except OSError:  # somebody has put something there
            return


def is_trace(path: Path) -> bool:
    """Return whether a folder holds a trace, or one that was not finished."""
    return path.is_dir() and ((path / ABOUT).is_file() or (path / _BEGUN).is_file())


def read(path: Path) -> ProgramTrace:
    """Return the trace in a folder, as it is so far where it is not finished.

    Raises `UsageError` where there is none, `CorruptFile` where it is damaged or contradicts itself.
    """
    if not is_trace(path):
        raise UsageError(f"no trace in {str(path)!r}", hint="give the folder of commbench record --out")
    try:
        made = _read(path) if (path / ABOUT).is_file() else _read_unfinished(path)
        trace.check(made)
    except CommbenchError:
        raise
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorruptFile(f"{path} is not a trace: {why}", hint="it is damaged, or was edited: record again") from error
    return made


def _read_unfinished(path: Path) -> ProgramTrace:
    begun = parse_json((path / _BEGUN).read_bytes(), finite=True)
    records = rank_file.read_all(path)
    if not records:
        raise UsageError(f"{str(path)!r} has nothing of any rank yet", hint="no rank has called a collective so far")
    known = {field.name for field in fields(ProgramTrace)}
    return consolidate(records, status="unfinished", **{key: begun[key] for key in begun.keys() & known})


def _read(path: Path) -> ProgramTrace:
    about = parse_json((path / ABOUT).read_bytes(), finite=True)
    if not isinstance(about, dict) or about.pop("format", None) != trace.FORMAT:
        raise ValueError(f"{ABOUT} does not say that it is a {trace.FORMAT}")
    if (version := about.pop("format_version", None)) != trace.FORMAT_VERSION:
        raise UsageError(
            f"{path} has version {version} of its format, this commbench reads {trace.FORMAT_VERSION}",
            hint="use the commbench version that wrote it",
        )
    groups = [{key: value for key, value in one.items() if key != _STRIDE} for one in about.pop("groups")]
    header = from_dict(ProgramTrace, {**about, "groups": groups, "calls": [], "steps": []})
    return replace(
        header,
        calls=[TracedCalls(**line) for line in _lines(path / CALLS, TracedCalls)],
        steps=[TracedStep(**line) for line in _lines(path / STEPS, TracedStep)],
    )


def _about(made: ProgramTrace) -> dict[str, Any]:
    """Return what trace.json holds."""
    values = as_dict(replace(made, calls=[], steps=[]))
    del values["calls"], values["steps"]
    groups = [{**asdict(group), _STRIDE: group.stride} for group in made.groups]
    return {"format": trace.FORMAT, "format_version": trace.FORMAT_VERSION, **values, "groups": groups}


def _schema(record: type[TracedCalls] | type[TracedStep]) -> pa.Schema:
    """Return the columns of a file: those of the record, by their names in files."""
    import pyarrow as pa

    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_(), list[int]: pa.list_(pa.int64())}
    hints = typing.get_type_hints(record)
    columns = []
    for item in fields(record):
        hint = hints[item.name]
        alternatives = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        columns.append(pa.field(_stored(item), kinds[alternatives[0]], nullable=type(None) in alternatives))
    return pa.schema(columns)


def _stored(item: Field[Any]) -> str:
    name: str = item.metadata.get(STORED_AS, item.name)
    return name


def _table(
    lines: Sequence[TracedCalls] | Sequence[TracedStep], record: type[TracedCalls] | type[TracedStep]
) -> pa.Table:
    import pyarrow as pa

    columns = {_stored(item): [getattr(line, item.name) for line in lines] for item in fields(record)}
    return pa.table(columns, schema=_schema(record))


def _lines(path: Path, record: type[TracedCalls] | type[TracedStep]) -> Iterator[dict[str, Any]]:
    """Yield the fields of each line. Raises `ValueError`, and what pyarrow raises, for a file with other columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows > trace.MOST_LINES:
            raise ValueError(f"{path.name} has {file.metadata.num_rows} lines, at most {trace.MOST_LINES} are read")
        schema = _schema(record)
        optional = {_stored(item) for item in fields(record) if item.default is not MISSING}
        wanted = [name for name in schema.names if name in file.schema_arrow.names]
        if lacking := {*schema.names} - {*wanted} - optional:
            raise ValueError(f"{path.name} has no column {sorted(lacking)[0]!r}")
        table = file.read(columns=wanted)
    for name in wanted:
        if table.column(name).null_count and not schema.field(name).nullable:
            raise ValueError(f"{path.name} has no {name} in some lines")
    table = table.cast(pa.schema(schema.field(name) for name in wanted))
    names = {_stored(item): item.name for item in fields(record)}
    for batch in table.to_batches():
        for line in batch.to_pylist():
            yield {names[name]: value for name, value in line.items()}
