"""What a tuning was asked and has done, in its folder: after a kill it is done again from there, to the same end.

A tuning decides by what its stages measured, and by the time that each left. Both are on disk, so whoever goes on takes
the same decisions again, and measures from where it was stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commbench
from commbench import launch
from commbench.errors import UsageError
from commbench.launch import supervise
from commbench.machine import metadata
from commbench.records import PlannedCase
from commbench.run_folder import RunFolder, append_record, read_lines, repair, timestamp
from commbench.serialise import check_types, from_dict, parse_json, to_json
from commbench.sweep.resume import drop_damaged_lines

FORMAT = "commbench-tuning"
# History of the format:
# 1  first version
FORMAT_VERSION = 1
_ABOUT, _STAGES = "tuning.json", "stages.jsonl"
_TYPES: dict[str, Any] = {
    "format": str, "format_version": int, "words": list[str], "launcher": str, "directory": str, "out": str,
    "commbench_version": str, "machine": dict[str, Any],
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDone:
    """A stage whose measurements are all there, and the clock when it ended."""

    run: str  # the id of its run folder
    spent_s: float
    start_s: float
    overhead_s: float


def is_one(path: Path) -> bool:
    """Return whether a folder is that of a tuning, finished or not."""
    return (path / _ABOUT).is_file()


class Journal:
    """The stages of one tuning: those that are done come back one by one, then new ones are noted."""

    def __init__(self, path: Path, about: dict[str, Any], done: Iterable[StageDone] = ()) -> None:
        """Take the folder's lock. Raises `UsageError` where another commbench has it."""
        self.path = path
        self.about = about
        self._done = list(done)
        self._next = 0
        self._lock = RunFolder(path).lock
        if not self._lock.take():
            raise UsageError(f"{path} is in use by another commbench", hint="wait for it, or end it first")

    @classmethod
    def begin(cls, path: Path, words: Sequence[str], launcher: str, out: Path | None) -> Journal:
        """Write into a new folder what is asked. out: where the profile goes besides."""
        about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "words": list(words),
            "launcher": launcher,
            "directory": str(Path.cwd()),
            "out": str(out.resolve()) if out else "",
            "commbench_version": commbench.__version__,
            "machine": metadata.collect(),
            "started": timestamp(),
        }
        RunFolder(path).write_json(_ABOUT, about)
        return cls(path, about)

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open a tuning to go on with. Raises `UsageError` where there is none, or the machine is another one."""
        path = path.resolve()
        if not is_one(path):
            raise UsageError(f"no tuning in {str(path)!r}", hint="give the folder that commbench tune printed")
        about = RunFolder(path).read_json(_ABOUT)
        try:
            check_types(about, _TYPES)
        except ValueError as error:
            raise UsageError(f"{path / _ABOUT}: {error}", hint="it was edited: start a new tuning") from error
        if (about["format"], about["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise UsageError(
                f"{path} has tuning format {about['format_version']}, this commbench reads {FORMAT_VERSION}",
                hint="use the commbench version that wrote it",
            )
        if changed := metadata.differences(about["machine"], metadata.collect()):
            raise UsageError(
                f"the machine is not what it was when {path.name} began: {'; '.join(changed)}",
                hint="a profile is of one machine: start a new tuning",
            )
        if links := [name for name in (_ABOUT, _STAGES) if (path / name).is_symlink()]:
            raise UsageError(f"{path / links[0]} is a link, and a resume writes in its own folder only",
                             hint="put the file itself there, or start a new tuning")  # fmt: skip
        repair(path / _STAGES)
        return cls(path, about, read_lines(path / _STAGES, lambda text: from_dict(StageDone, parse_json(text))))

    @property
    def spent_s(self) -> float:
        """Return what the tuning has taken so far, seconds."""
        return self._done[-1].spent_s if self._done else 0.0

    @property
    def count(self) -> int:
        """Return how many stages are done."""
        return len(self._done)

    def replay(self, planned: Sequence[PlannedCase]) -> tuple[RunFolder, StageDone] | None:
        """Return the next stage that is done, None where there is none any more. `planned`: what it would measure now.

        Raises `UsageError` where that is something else.
        """
        if self._next >= len(self._done):
            return None
        done = self._done[self._next]
        self._next += 1
        return self._opened(done.run, planned), done

    def unfinished(self, planned: Sequence[PlannedCase]) -> RunFolder | None:
        """Return the stage that was being measured, mended and locked; None where there is none."""
        known = {done.run for done in self._done}
        left = [path for path in sorted(self.path.iterdir()) if (path / "run.json").is_file() and not path.is_symlink()]
        names = [path.name for path in left if path.name not in known]
        if not names:
            return None
        folder = self._opened(names[-1], planned)
        launchers = set(folder.read_json("run.json")["launchers"].values()) & set(launch.TABLE)
        supervise.open_to_resume(folder, launchers, (folder.measurements_path, folder.cases_path))
        drop_damaged_lines(folder)
        return folder

    def add(self, done: StageDone) -> None:
        """Note a stage whose measurements are all there."""
        self._done.append(done)
        self._next = len(self._done)
        append_record(self.path / _STAGES, to_json(done))

    def close(self) -> None:
        self._lock.release()

    def _opened(self, run: str, planned: Sequence[PlannedCase]) -> RunFolder:
        if Path(run).name != run:
            raise UsageError(f"{self.path / _STAGES} names {run!r}", hint="it was edited: start a new tuning")
        folder = RunFolder.open(self.path / run)
        if {item.case.case_id for item in folder.plan()} != {item.case.case_id for item in planned}:
            raise UsageError(
                f"{self.path} cannot go on: {run} measured other cases than would be measured now",
                hint="the recipe, a file that it names, or commbench changed meanwhile: start a new tuning",
            )
        return folder
