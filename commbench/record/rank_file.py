"""RankRecord: what one rank has recorded so far, in a JSON file that is whole whenever it is read.

Ranks write it every few seconds, so nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

from commbench.errors import CorruptFile
from commbench.record.trace import TracedCalls
from commbench.serialise import STORED_AS, from_dict, parse_json

FOLDER = "ranks"  # of a trace
_VERSION = 1
_MOST_BYTES = 1 << 30
_COLUMNS = [(item.name, item.metadata.get(STORED_AS, item.name)) for item in fields(TracedCalls)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord:
    """What one rank knows. Calls name groups by their place in `groups`."""

    version: int = _VERSION
    rank: int
    ranks: int
    host: str
    transport: str
    gpu: str
    versions: dict[str, str]
    group_names: list[str]
    group_ranks: list[list[int]]
    calls: list[TracedCalls]
    steps: list[list[float]]  # of each that was kept: its number and its duration in microseconds


def path_of(folder: Path, rank: int) -> Path:
    """Return where a rank writes."""
    return folder / FOLDER / f"rank-{rank}.json"


def write(folder: Path, record: RankRecord) -> None:
    """Put the file in the place of the last one. It is not forced to the disk, as that may take longer than a step."""
    path = path_of(folder, record.rank)
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    values["calls"] = [{stored: getattr(one, name) for name, stored in _COLUMNS} for one in record.calls]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(values, separators=(",", ":"), allow_nan=False))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_all(folder: Path) -> list[RankRecord]:
    """Return what ranks have written, by rank. Raises `CorruptFile` for a file that is damaged."""
    records = []
    for path in (folder / FOLDER).glob("rank-*.json"):
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
                raise ValueError("it is not a file of a rank")
            record = from_dict(RankRecord, parse_json(path.read_bytes(), finite=True))
            if record.version != _VERSION:
                raise ValueError(f"its version is {record.version}, this commbench reads {_VERSION}")
            if path != path_of(folder, record.rank):
                raise ValueError(f"it says that it is of rank {record.rank}")
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptFile(f"{path}: {error}", hint="it is damaged: remove it, or record again") from error
        records.append(record)
    return sorted(records, key=lambda record: record.rank)
