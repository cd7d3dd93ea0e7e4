"""The run folder: written so that a kill at any moment loses no finished measurement and tears nothing.

Whole files are replaced atomically. Lines are appended with one write and flushed to disk; a line without its newline
was torn by a kill and is dropped, any other line that cannot be read is an error with its file and number.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from commbench.errors import CorruptFile, UsageError, is_of_storage, storage
from commbench.files import Lock, atomic_file, named, write_atomically
from commbench.records import READABLE, Case, Measurement, PlannedCase, Row, check_case, check_measurement, check_row
from commbench.serialise import (
    ListDigest,
    check_types,
    from_dict,
    is_sealed,
    parse_json,
    parse_line,
    seal,
    to_json,
    unseal,
)

T = TypeVar("T")

_TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp|\.latest\.\d+\.tmp|\.step-\d+\.tmp|\.room")  # by their names
_ROOM_BYTES = 1 << 16  # of a disk that is not full


def timestamp() -> str:
    """Return the time of now, in UTC and to the second, as every file of a run folder has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append_line(path: Path, line: str, *, durable: bool = True) -> None:
    """Append with one write, so that lines of several writers do not mix; on disk when this returns, if `durable`.

    Raises `OSError` with the file's name if the disk takes only a part, and takes that part back.
    """
    data = line.encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(descriptor)
    except OSError as error:
        raise named(error, path) from None
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what writers that were killed have left in `folder` and below it. Nobody else writes there now."""
    for parent, folders, files in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, [*folders, *files]):
            path = Path(parent, name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)  # stops at a link
            else:
                path.unlink(missing_ok=True)


def append_record(path: Path, text: str, *, durable: bool = True) -> None:
    """Append the JSON of an object as `append_line` does, with a checksum."""
    append_line(path, seal(text), durable=durable)


_RESTORE = "the line is damaged or was edited: restore it, or measure again in a new run"


@dataclass(slots=True)
class LinesRead:
    """How far a growing file of lines was read."""

    offset: int = 0
    lines: int = 0


def read_lines(
    path: Path, parse: Callable[[bytes], T], *, torn: bool = True, hint: str = _RESTORE, place: LinesRead | None = None
) -> Iterator[T]:
    """Yield the parsed lines of a JSONL file; nothing if it does not exist. A torn last line is passed over, if it may
    be `torn`: one that was written as a whole may not. With a `place`, reading begins there and moves it on.

    Raises `CorruptFile` for a line that does not fit its checksum, or that `parse` refuses.
    """
    if not path.exists():
        return
    place = place or LinesRead()
    with open(path, "rb") as file:
        file.seek(place.offset)
        for raw in file:
            if torn and not raw.endswith(b"\n") and not is_sealed(raw[:-1]):  # else its newline is damaged
                return
            place.offset, place.lines = place.offset + len(raw), place.lines + 1
            try:
                yield parse(unseal(raw))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise CorruptFile(f"{path}:{place.lines}: {_why(error)}", hint=hint) from error


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return "it nests too deeply" if isinstance(error, RecursionError) else str(error)


def repair(path: Path) -> bool:
    """Cut off a torn last line, so that appending is safe again. Return whether there was one."""
    if not path.exists():
        return False
    with open(path, "rb+") as file:
        data = file.read()
        if not data or data.endswith(b"\n"):
            return False
        file.truncate(data.rfind(b"\n") + 1)
    return True


def drop_damaged(path: Path, parse: Callable[[bytes], Any]) -> list[str]:
    """Take lines that cannot be read out of a JSONL file, so that what they had is measured again; say which, and why.

    The file as it was is kept beside it.
    """
    bad: dict[int, str] = {}
    if not path.exists():
        return []
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                if not is_sealed(raw):
                    parse(unseal(raw))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                bad[number] = _why(error)
    if bad:
        before = path.with_name(f"{path.name}.damaged")
        os.replace(path, before)
        with open(before, "rb") as file, atomic_file(path) as kept:
            kept.writelines(raw for number, raw in enumerate(file, 1) if number not in bad)
    return [f"{path}:{number}: {why}" for number, why in bad.items()]


class Tail:
    """Reads the new whole lines of a growing JSONL file."""

    def __init__(self, path: Path, *, from_start: bool = False, offset: int | None = None) -> None:
        """`offset` is that of the first byte that is new."""
        self._path = path
        if offset is None:
            offset = 0 if from_start or not path.exists() else path.stat().st_size
        self._offset = offset

    def read(self, cls: type[Any] | None = None) -> list[Any]:
        """Return the parsed lines since the last call: records of `cls`, or plain dictionaries."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        try:
            parsed = [parse_json(unseal(line)) for line in whole.splitlines()]
            return [from_dict(cls, raw) for raw in parsed] if cls else parsed
        except (ValueError, TypeError) as error:
            raise CorruptFile(f"{self._path}: {error}", hint="somebody else writes there: start a new run") from error


def parse_measurement(text: bytes) -> Measurement:
    """Return the measurement in a line. Raises `ValueError`."""
    measurement = parse_line(Measurement, text)
    check_measurement(measurement)
    return measurement


def parse_row(text: bytes) -> Row:
    """Return the row in a line. Raises `ValueError`."""
    row = parse_line(Row, text)
    check_row(row)
    return row


def _damaged(path: Path, error: Exception) -> CorruptFile:
    return CorruptFile(f"{path}: {_why(error)}", hint="the run folder is damaged or was edited: start a new run")


# What every run.json of a sweep has.
_ABOUT = {
    **dict.fromkeys(("run_id", "plan_digest", "commbench_version", "machine_text"), str),
    "machine": dict[str, Any],
    "launchers": dict[str, str],
    "joined": str,
    "timeout_s": float,
    "seed": int,
    "started": str,
}
# What is computed with of the machine; None where it could not be read.
_MACHINE = {
    "usable_cpus": int | None,
    "affinity": list[int] | None,
    "gpus": list[dict[str, Any]] | None,
}


class RunFolder:
    """Keeps in `results/RUN_ID` what was asked, what happened, and what came out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.measurements_path = path / "measurements.jsonl"
        self.cases_path = path / "cases.jsonl"
        self.plan_path = path / "plan.jsonl"
        self.lock = Lock(path / ".lock")  # held by the sweep
        self.ranks_lock = Lock(path / ".ranks.lock")  # shared by its ranks

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def mending(self) -> str:
        """Return what to do about a damaged line of results."""
        return f"commbench sweep --resume {self.path} takes the line out, and measures again what it had"

    @classmethod
    def create(cls, parent: Path, recipe: str, parts: Iterable[str] = ("logs", "samples")) -> RunFolder:
        """Make a new folder below `parent`, with `parts` in it. Raises `UsageError` if it cannot be written."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        path = parent / f"{stamp}-{recipe}-{secrets.token_hex(3)}"
        try:
            path.mkdir(parents=True)
            for name in parts:
                (path / name).mkdir()
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise UsageError(
                f"cannot write {str(parent)!r}: {error.strerror}", hint="choose a folder of yours: --out DIR"
            ) from error
        return cls(path)

    @contextlib.contextmanager
    def completed(self) -> Iterator[None]:
        """Remove the folder, which is new, if what makes it a run cannot be written. Raises `EnvironmentProblem`."""
        try:
            with storage(self.path, "make room, or choose another disk: --out DIR"):
                yield
        except BaseException:
            self.lock.release()
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run. Raises `UsageError` where there is none, or one of another format."""
        if not (path / "run.json").is_file():
            hint = "give the folder that a sweep printed, or results/latest; of a tuning the folder of a stage in it"
            if newest := max(path.glob("*/run.json"), default=None):  # as in --out; names begin with the time
                hint = f"give the newest run in it: {newest.parent}"
            raise UsageError(f"no run in {str(path)!r}", hint=hint)
        folder = cls(path.resolve())
        about = folder.read_json("run.json")
        version = about.get("format_version")
        if str(version).startswith("train-"):
            raise UsageError(
                f"{path} is a training", hint="commbench plot draws trainings; commbench train ab compares two settings"
            )
        if version not in READABLE:
            raise UsageError(
                f"{path} has format {version}, this commbench reads {min(READABLE)} to {max(READABLE)}",
                hint="use the commbench version that wrote it",
            )
        try:
            check_types(about, _ABOUT, {"link_rate": dict[str, str]})
            check_types(about["machine"], {}, _MACHINE)
        except ValueError as error:
            raise _damaged(path / "run.json", error) from error
        return folder

    def refuse_links(self) -> None:
        """Raise `UsageError` where something in the folder is no file and no folder of its own.

        Whoever goes on with the run writes and removes there: a link would lead that out of it. Logs of launches hold
        what other programs wrote; nobody writes into them, but for what lies in a launch's own folder.
        """
        for parent, folders, files in os.walk(self.path):
            in_launch = Path(parent).parent == self.path / "logs"
            for name in [*folders, *files]:
                mode = Path(parent, name).lstat().st_mode
                harmless = (in_launch and stat.S_ISSOCK(mode)) or (stat.S_ISLNK(mode) and _TEMPORARY.fullmatch(name))
                if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or harmless):
                    kind = "a link" if stat.S_ISLNK(mode) else "no file"
                    raise UsageError(
                        f"{Path(parent, name)} is {kind}, and a resume writes and removes in its own folder only",
                        hint="put the file or the folder itself there, or start a new run",
                    )
            if in_launch:
                folders.clear()

    def link_latest(self) -> None:
        """Let `latest` beside the run folder point to it."""
        temporary = self.path / f".latest.{os.getpid()}.tmp"  # where a resume takes it away
        try:
            temporary.symlink_to(self.path.name)
            os.replace(temporary, self.path.parent / "latest")
        except OSError:  # a convenience: a file system without links does without
            temporary.unlink(missing_ok=True)

    def takes_no_more(self) -> OSError | None:
        """Return why nothing more can be written here; None if that works."""
        room = self.path / ".room"
        try:
            write_atomically(room, bytes(_ROOM_BYTES))
        except OSError as error:
            return error if is_of_storage(error) else None
        room.unlink(missing_ok=True)
        return None

    def ranks_ended(self, *, wait_s: float) -> bool:
        """Return whether no rank is in the run any more, after waiting for them as long as that."""
        ended = self.ranks_lock.take(wait_s=wait_s)
        self.ranks_lock.release()
        return ended

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a file. Raises `CorruptFile` where there is none, or its checksum does not fit."""
        path = self.path / name
        try:
            value = parse_json(unseal(path.read_bytes()))
            check_types(value, {})
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        found: dict[str, Any] = value
        return found

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write an object, which is not empty, with its checksum."""
        write_atomically(self.path / name, seal(json.dumps(value, indent=1)) + "\n")

    def set_status(self, status: str) -> None:
        """Write into run.json what has become of the run, and when."""
        self.write_json("run.json", {**self.read_json("run.json"), "status": status, "updated": timestamp()})

    def write_plan(self, lines: Iterable[dict[str, Any]]) -> str:
        """Write the plan and return its digest, by which a resume knows that nobody edited it."""
        digest = ListDigest()
        with atomic_file(self.plan_path) as file:
            for line in lines:
                file.write(seal(json.dumps(line, separators=(",", ":"))).encode() + b"\n")
                digest.add(line)
        return str(digest)

    def plan(self, digest: ListDigest | None = None) -> list[PlannedCase]:
        """Return the cases in order. `digest` is given what it takes to be that of the plan as it is now."""

        def planned(text: bytes) -> PlannedCase:
            line = parse_json(text)
            check_types(line, {"case": dict[str, Any], "skip": str})
            if digest is not None:
                digest.add(line)
            case = from_dict(Case, line["case"])
            check_case(case)
            return PlannedCase(case=case, skip=line["skip"])

        return list(read_lines(self.plan_path, planned, torn=False))

    def measurements(self) -> list[Measurement]:
        return list(read_lines(self.measurements_path, parse_measurement, hint=self.mending))

    def append_measurement(self, measurement: Measurement) -> None:
        append_record(self.measurements_path, to_json(measurement))

    def rows(self) -> dict[str, Row]:
        """Return the last row of each case: a case measured again replaces its earlier row."""
        return {row.case_id: row for row in read_lines(self.cases_path, parse_row, hint=self.mending)}

    def append_row(self, row: Row) -> None:
        append_record(self.cases_path, to_json(row))

    def samples_path(self, attempt: str) -> Path:
        return self.path / "samples" / f"{attempt}.jsonl"
