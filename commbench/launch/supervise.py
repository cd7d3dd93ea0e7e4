"""One launch as its parent sees it: start the ranks, hear them, end all of them, and say why they broke."""

from __future__ import annotations

import contextlib
import math
import os
import textwrap
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from commbench import fabric, launch, variables
from commbench.errors import EnvironmentProblem, UsageError, is_of_storage
from commbench.launch.job import EVENTS, EXITS, FAILURES, RANKS_END_S, STARTS_WITHIN_S, TRACE_DOING, Job
from commbench.processes import cleanup
from commbench.processes.process import Process, rank_environment
from commbench.run_folder import RunFolder, Tail, remove_temporaries, repair

POLL_S = 0.05
_GRACE_S = 5.0  # from a rank that raised to the end of the others
_TAIL_LINES = 8
_MOST_SILENT = 8  # ranks that are named
_DOING_LETTERS = 80  # of a trace, in a sentence
_LOST_PEER = ("Connection closed by peer", "Connection reset", "is gone", "Broken pipe")


class Watch:
    """Hears a launch, and knows whether it makes sense to wait for more of it."""

    def __init__(
        self,
        job: Job,
        on_event: Callable[[dict[str, Any]], None],
        read_more: Callable[[], bool] = lambda: False,
        *,
        grace_s: float = _GRACE_S,
    ) -> None:
        """`on_event` gets each event of the ranks. `read_more` reads what else they write: whether there was something.

        `grace_s` is how long a rank that raised leaves to its peers, which may wait for it inside a library that does
        not notice.
        """
        self._job = job
        self._on_event = on_event
        self._read_more = read_more
        self._grace_s = grace_s
        self._events = Tail(job.folder / EVENTS, from_start=True)
        self._failures = Tail(job.folder / FAILURES, from_start=True)
        self._heard = time.monotonic()
        self._until = math.inf
        self.failures: list[dict[str, Any]] = []  # of ranks that raised
        self.begun = False  # its first case or step
        self.timed_out = False

    @property
    def allowed_s(self) -> float:
        """Return how many seconds the ranks may be silent."""
        return self._job.timeout_s if self.begun else max(self._job.timeout_s, STARTS_WITHIN_S)

    def listen(self) -> None:
        """Hand on what is new."""
        for event in self._events.read():
            self._heard = time.monotonic()
            self.begun |= event["event"] == "begin"
            self._on_event(event)
        self.read_more()

    def read_more(self) -> None:
        """Hand on what is new, but for events."""
        if self._read_more():
            self._heard = time.monotonic()

    def gives_up(self) -> bool:
        """Return whether nobody should wait any longer: a rank has raised, or all have been silent for too long."""
        now = time.monotonic()
        self.failures += self._failures.read()
        if self.failures:
            self._until = min(self._until, now + self._grace_s)
        self.timed_out = now < self._until and now - self._heard > self.allowed_s
        return self.timed_out or now >= self._until


def watch(job: Job, launcher: str, on_event: Callable[[dict[str, Any]], None], read_more: Callable[[], bool]) -> Watch:
    """Start the ranks of `job` under `launcher` and hand on what they say until they have ended, or been ended.

    Whatever happens, no rank is left when this returns or raises.
    """
    path = job.save()
    starter = launch.get(launcher)
    command = starter.command(path, job)
    if job.setup.emulated:
        command = fabric.wrap(command, job.setup.emulated)
    watched = Watch(job, on_event, read_more)
    process = Process(command, _environment(job, starter), job.folder / "launcher.log")
    try:
        while True:
            ended = process.ended()  # before listening: what was written by then is heard below
            watched.listen()
            if ended:
                return watched
            if watched.gives_up():
                break
            time.sleep(POLL_S)
    finally:
        _end(process, starter, job)
    watched.read_more()  # no events: whoever began since then is not the one that was waited for
    return watched


def _environment(job: Job, starter: launch.Launcher) -> dict[str, str]:
    """Return the variables of the ranks: the parent's, those of the launcher, and those that the job is about."""
    asked = job.setup.env
    own = {variables.BINDING: job.setup.binding}
    if job.setup.emulated:
        own[variables.FABRIC] = str(job.setup.emulated)
    environment = variables.applied({**rank_environment(starter.environment(job)), **own}, asked)
    if job.setup.transport == "nccl" and not job.program:  # which would not read what NCCL has written
        environment |= variables.nccl_log(job.folder, asked, environment)
    return environment


def _end(process: Process, starter: launch.Launcher, job: Job) -> None:
    if not process.ended():
        process.kill()
        starter.cancel(job.folder)
    # Those of a launcher that was killed may still be ending, and hold what is removed.
    RunFolder(Path(job.run_dir)).ranks_ended(wait_s=RANKS_END_S)
    cleanup.remove(job.folder)
    remove_temporaries(job.folder)


class Reason(NamedTuple):
    """Says why a launch broke: `text` is "" where nobody knows. `log` may tell more.

    `storage` is why nothing can be written any more, if that is it.
    """

    text: str
    log: Path
    storage: OSError | None

    def stop_if_full(self) -> None:
        """Raise `OSError`, a new one, if nothing can be written any more."""
        if self.storage is not None:
            raise OSError(self.storage.errno, self.storage.strerror, self.storage.filename)

    def last_lines(self) -> list[str]:
        """Return the end of the log; nothing where there is none."""
        return self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if self.log.exists() else []

    def shown(self) -> str:
        """Return the end of the log for people, in lines, or that there is none."""
        lines = self.last_lines()
        if not any(map(str.strip, lines)):
            return f"{self.log.name} is {'empty' if self.log.exists() else 'not there'}: {self.log}"
        return "\n".join([f"the last lines of {self.log}:", *(f"    {line}" for line in lines)])


def explain(job: Job, launcher: str) -> Reason:
    """Return what the first rank that failed has said, or what the launcher says of it."""
    log, text = job.folder / "launcher.log", ""
    exits = Tail(job.folder / EXITS, from_start=True).read()
    failures = Tail(job.folder / FAILURES, from_start=True).read()
    told = [
        OSError(line["errno"], os.strerror(line["errno"]), line.get("file")) for line in failures if line.get("errno")
    ]
    # A rank that cannot write cannot tell that either.
    storage = next(filter(is_of_storage, told), None) or RunFolder(Path(job.run_dir)).takes_no_more()
    # Whoever lost a connection did so because of another: look for that one first.
    own = [line for line in failures if not any(words in line["error"] for words in _LOST_PEER)]
    if exits or own:
        first = (exits or own)[0]
        text = f"rank {first['rank']} {first.get('what') or 'failed: ' + first['error']}"
        log = job.folder / f"rank-{first['rank']}.log"
    elif failures:
        text = f"rank {failures[0]['rank']} lost another rank, which was killed or crashed"
    said = log.read_text(errors="replace") if log.exists() else ""
    if not exits and not own:
        text = launch.get(launcher).explain(said) or text
    if job.setup.emulated:
        text = fabric.explain(said) or text
    return Reason(text, log, storage)


def explain_silence(job: Job) -> str:
    """Return where the ranks were when they stopped, to be added to a sentence; "" where none has left a trace.

    A rank that can still run Python leaves one. So those without are what the others wait for, whoever wrote first.
    """
    if (stopped := stopped_rank(job.folder)) is None:
        return ""
    rank, doing, path = stopped
    where = f"in {doing}: {path.relative_to(job.run_dir)}"
    if silent := ranks_without_trace(job):
        shown = ", ".join(map(str, silent[:_MOST_SILENT]))
        shown += f" and {len(silent) - _MOST_SILENT} more" if len(silent) > _MOST_SILENT else ""
        which = f"rank{'s' * (len(silent) > 1)} {shown}"
        return f"; {which} left no trace (stopped, gone, or stuck outside of Python); rank {rank} waited {where}"
    return f"; rank {rank} was {where}"


def ranks_without_trace(job: Job) -> list[int]:
    """Return the ranks that have not said where they hang."""
    return [rank for rank in range(job.setup.layout.ranks) if not (job.folder / f"trace-rank-{rank}.txt").exists()]


def stopped_rank(folder: Path) -> tuple[str, str, Path] | None:
    """Return the rank that stopped first of those that left a trace in `folder`, what it was doing, and its file.

    First, as the others may only wait for it.
    """
    traces = []
    for path in folder.glob("trace-rank-*.txt"):
        with contextlib.suppress(OSError):  # taken away meanwhile
            traces.append((path.stat().st_mtime_ns, path, path.read_text(errors="replace")))
    if not traces:
        return None
    _, path, text = min(traces)
    doing = next((line.removeprefix(TRACE_DOING) for line in text.splitlines() if line.startswith(TRACE_DOING)), "?")
    return path.stem.rpartition("-")[2], textwrap.shorten(doing, _DOING_LETTERS, placeholder="..."), path


def open_to_resume(folder: RunFolder, launchers: Collection[str], lines: Sequence[Path]) -> list[Path]:
    """Lock the folder of a run that was killed, end its ranks and remove what they have left; then mend its files.

    `launchers` may have started the ranks; the run appends to the files `lines`. Returns those whose last line was
    torn, and is cut off now. Raises `UsageError` where another commbench has the run or something in it leads out of
    it, and `EnvironmentProblem` where ranks do not end. The caller has looked before whether the run may go on here:
    nothing is removed for one that may not.
    """
    folder.refuse_links()
    if not folder.lock.take():
        raise UsageError(f"{folder.path} is in use by another commbench", hint="wait for it, or end it first")
    attempts = sorted((folder.path / "logs").glob("*/"))
    for name in launchers:
        for attempt in attempts:
            launch.get(name).cancel(attempt)
    if not folder.ranks_ended(wait_s=RANKS_END_S):
        raise EnvironmentProblem(
            f"ranks of the killed run are still alive after {RANKS_END_S:.0f} s", hint="end them, then resume again"
        )
    for attempt in attempts:
        cleanup.remove(attempt, foreign=True)
    remove_temporaries(folder.path)
    return [path for path in lines if repair(path)]
