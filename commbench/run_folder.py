"""The run folder: written so that a kill at any moment loses no finished measurement and tears nothing.

Whole files are replaced atomically. Lines are appended with one write and flushed to disk; a line without its newline
was torn by a kill and is dropped, any other line that cannot be read is an error with its file and number.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from commbench.errors import CorruptFile, UsageError, is_of_storage, storage
from commbench.files import atomic_file, named, write_atomically
from commbench.records import READABLE, Case, Measurement, PlannedCase, Row
from commbench.serialise import ListDigest, from_dict, parse_json, parse_line, to_json

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


def read_lines(path: Path, parse: Callable[[str], T]) -> Iterator[T]:
    """Yield the parsed lines of a JSONL file; nothing if it does not exist. A torn last line is passed over."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                yield parse(raw.decode())
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise CorruptFile(
                    f"{path}:{number}: {error}",
                    hint="the line is damaged or was edited: restore it, or measure again in a new run",
                ) from error


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
        parsed = [json.loads(line) for line in whole.splitlines()]
        return [from_dict(cls, raw) for raw in parsed] if cls else parsed


class Lock:
    """Holds an flock, which the kernel frees when its holder ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def take(self, *, shared: bool = False, wait_s: float = 0.0) -> bool:
        """Return whether it is held now; others may still hold it after `wait_s` seconds."""
        # Who can open it can hold it: nobody else shall.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # one of an older version, or of a file system without modes
            os.fchmod(descriptor, 0o600)
        self._file = open(descriptor, "ab")  # noqa: SIM115 - held until release or the end of the process
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    self._file.close()
                    self._file = None
                    return False
                time.sleep(0.05)

    @property
    def descriptor(self) -> int | None:
        """Return what a child has to keep open so that the lock is held until it has ended; None: it is not held."""
        return None if self._file is None else self._file.fileno()

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


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

    @classmethod
    def create(cls, parent: Path, recipe: str) -> RunFolder:
        """Make a new folder below `parent`. Raises `UsageError` if it cannot be written."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        path = parent / f"{stamp}-{recipe}-{secrets.token_hex(3)}"
        try:
            path.mkdir(parents=True)
            (path / "logs").mkdir()
            (path / "samples").mkdir()
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
            raise UsageError(f"no run in {str(path)!r}", hint="give the folder that a sweep printed, or results/latest")
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
        if missing := {"plan_digest", "machine", "launchers", "joined", "timeout_s", "seed", "started"} - about.keys():
            raise CorruptFile(
                f"{path / 'run.json'}: {sorted(missing)[0]!r} is missing",
                hint="the run folder is damaged: start a new run",
            )
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
        path = self.path / name
        try:
            value = parse_json(path.read_text())
        except (OSError, ValueError) as error:
            raise CorruptFile(f"{path}: {error}", hint="the run folder is damaged: start a new run") from error
        if not isinstance(value, dict):
            raise CorruptFile(f"{path}: no JSON object", hint="the run folder is damaged: start a new run")
        return value

    def write_json(self, name: str, value: Any) -> None:
        write_atomically(self.path / name, json.dumps(value, indent=1) + "\n")

    def set_status(self, status: str) -> None:
        """Write into run.json what has become of the run, and when."""
        self.write_json("run.json", {**self.read_json("run.json"), "status": status, "updated": timestamp()})

    def write_plan(self, lines: Iterable[dict[str, Any]]) -> str:
        """Write the plan and return its digest, by which a resume knows that nobody edited it."""
        digest = ListDigest()
        with atomic_file(self.plan_path) as file:
            for line in lines:
                file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
                digest.add(line)
        return str(digest)

    def plan(self) -> list[PlannedCase]:
        """Return the cases in order."""

        def planned(text: str) -> PlannedCase:
            line = parse_json(text)
            return PlannedCase(case=from_dict(Case, line["case"]), skip=str(line["skip"]))

        return list(read_lines(self.plan_path, planned))

    def plan_digest(self) -> str:
        """Return the digest of the plan as it is now."""
        digest = ListDigest()
        for line in read_lines(self.plan_path, parse_json):
            digest.add(line)
        return str(digest)

    def measurements(self) -> list[Measurement]:
        return list(read_lines(self.measurements_path, lambda line: parse_line(Measurement, line)))

    def append_measurement(self, measurement: Measurement) -> None:
        append_line(self.measurements_path, to_json(measurement))

    def rows(self) -> dict[str, Row]:
        """Return the last row of each case: a case measured again replaces its earlier row."""
        return {row.case_id: row for row in read_lines(self.cases_path, lambda line: parse_line(Row, line))}

    def append_row(self, row: Row) -> None:
        append_line(self.cases_path, to_json(row))

    def samples_path(self, attempt: str) -> Path:
        return self.path / "samples" / f"{attempt}.jsonl"
