"""`commbench ab` from its words to its answer: launches of somebody's program, each with a log of its own."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import commbench
from commbench.ab import answer, arms, launches, pairs
from commbench.ab.launches import FORMAT, LAUNCHES, ProgramLaunch
from commbench.ab.pairs import ARMS, BASELINE, Paired
from commbench.ab.plan import LEAST_S, TIMES, ProgramPlan, ProgramRequest, plan
from commbench.ab.recorded import Recorded
from commbench.ab.turns import ArmFailed, Stop, Turns
from commbench.console import Console
from commbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EnvironmentProblem, UsageError, storage
from commbench.launch import foreign, supervise
from commbench.machine import metadata
from commbench.output.answer.words import count
from commbench.output.grid import refolded
from commbench.records import Fabric, network_note
from commbench.run_folder import RunFolder, append_record, timestamp
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.sweep import prepare
from commbench.sweep.session import interrupt_on_sigterm
from commbench.units import format_seconds

_LATER = ("budget", "resolve")  # what a comparison that goes on may have another value of


def create(request: ProgramRequest) -> ProgramComparison:
    """Check all that can be checked before the first launch, and make the folder. Raises `CommbenchError`."""
    asked = plan(request)
    for arm in asked.arms.values():
        foreign.check(arm.command, asked.cluster, {**os.environ, **arm.environment()})
    folder = RunFolder.create(request.out, "ab", parts=("logs",))
    folder.link_latest()
    folder.lock.take()
    asked = _bound(asked, folder)
    about = {
        "format": FORMAT,
        **asked.identity(),
        "request": asked.request,
        "folder": str(Path.cwd()),
        "commbench_version": commbench.__version__,
        "machine_text": prepare.machine_text(metadata.collect()),
        "started": timestamp(),
    }
    return ProgramComparison(request, asked, folder, about, [])


def _bound(asked: ProgramPlan, folder: RunFolder) -> ProgramPlan:
    return replace(asked, arms={name: arm.bound_in(folder.path) for name, arm in asked.arms.items()})


def resume(path: Path, request: ProgramRequest) -> ProgramComparison:
    """Go on with a comparison that was stopped, or has spent its budget. Raises `CommbenchError`.

    request: its words may set a larger budget or another `resolve`; all else is as it was.
    """
    if odd := [word for word in request.words if word.partition("=")[0] not in _LATER]:
        raise UsageError(f"{odd[0]} cannot change in the middle of a comparison",
                         hint=f"{'=.. and '.join(_LATER)}=.. may be typed beside --resume")  # fmt: skip
    if request.program is not None or request.profiles or request.metric or request.reductions:
        raise UsageError("--resume knows its program, its arms and its metric", hint=f"--resume {path} alone")
    about, made = launches.read(path)
    if (path / "ab.json").stat().st_uid != os.getuid():
        raise UsageError(f"{path} is somebody else's, and to go on with it is to run the program that it names",
                         hint="start a comparison of your own")  # fmt: skip
    typed = about["request"]
    before = ProgramRequest(
        words=(*typed["words"], *request.words), profiles=tuple(typed["profiles"]), metric=typed["metric"],
        program=tuple(typed["program"]), allow_env=tuple(typed["allow_env"]),
        reductions=typed.get("reductions", False),  # which older comparisons do not say
    )  # fmt: skip
    folder = RunFolder(path.resolve())
    try:
        os.chdir(about["folder"])
    except OSError as error:
        raise UsageError(f"the folder that it was started in, {about['folder']!r}, is gone: {error.strerror}",
                         hint="start it again") from error  # fmt: skip
    asked = plan(before)
    machine = prepare.machine_text(metadata.collect())
    changed = [name for name, value in asked.identity().items() if value != about.get(name)]
    changed += ["machine"] if machine != about["machine_text"] else []
    if changed:
        raise UsageError(f"{path} cannot go on: {', '.join(changed)} changed meanwhile", hint="start a new comparison")
    supervise.open_to_resume(folder, (), [folder.path / LAUNCHES])
    for left in folder.path.glob("logs/*.trace"):
        shutil.rmtree(left)
    return ProgramComparison(request, _bound(asked, folder), folder, about, made)


class ProgramComparison:
    """Measures a comparison of two arms. What it knows is in `ab.json` from the beginning."""

    def __init__(
        self,
        request: ProgramRequest,
        asked: ProgramPlan,
        folder: RunFolder,
        about: dict[str, Any],
        made: Sequence[ProgramLaunch],
    ) -> None:
        """asked, about: what is to be done, and what `ab.json` says. made: launches of one that goes on."""
        self._request, self._plan, self._folder, self.about = request, asked, folder, about
        self._console = Console(quiet=request.quiet)
        self._metric = asked.metric
        self._doing = ""
        self._first = next((one for one in made if one.round < 0), None)
        if self._first is not None:  # it goes on
            self._metric = replace(asked.metric, pattern=about.get("metric_used") or "")
        self._stop: Stop | None = None
        self._said: list[str] = list(about.get("said", []))  # by commbench inside of the program
        self._turns = Turns(
            asked.limits,
            self._one,
            self._say,
            launches=[one for one in made if one.round >= 0],
            spent_s=float(about.get("spent_s", 0.0)),
            clock=time.monotonic,
        )

    @property
    def folder(self) -> Path:
        return self._folder.path

    @property
    def launches(self) -> list[ProgramLaunch]:
        """Return the launches of rounds that have both arms, in their order."""
        return [one for both in pairs.whole(self._turns.launches) for one in both]

    def run(self) -> int:
        """Return the exit code. However it ends, what has been measured until then is written.

        Raises `EnvironmentProblem` where the disk takes no more.
        """
        with storage(self.folder, f"make room, then go on with: commbench ab --resume {self.folder}"):
            return self._run()

    def _run(self) -> int:
        interrupt_on_sigterm()
        self._folder.ranks_lock.take(shared=True)
        limits = self._plan.limits
        most = ("" if limits.rounds is not None else "up to ") + count(limits.most, "round")
        most += f", {format_seconds(limits.budget_s)}" if limits.budget_s is not None else ""
        self._console.note(f"{arms.differences(self._plan.arms)}; {most}; in {self.folder}")
        self._write("running")
        status, code = "failed", EXIT_FAILED
        try:
            self._measure()
            status, code = "finished", EXIT_FAILED if BASELINE in self._turns.failed else EXIT_OK
        except KeyboardInterrupt:
            status, code = "interrupted", EXIT_INTERRUPTED
        finally:
            self._write(status)
            self._folder.ranks_lock.release()
            self._folder.lock.release()
        if code == EXIT_INTERRUPTED:
            kept = count(self.about["rounds"], "whole round")
            self._console.note(f"interrupted at {self._doing}; {kept} kept")
            self._console.note(f"go on with: commbench ab --resume {self.folder}")
        return code

    def _measure(self) -> None:
        try:
            self._first = self._first or self._one(BASELINE, -1)
        except ArmFailed as error:
            self._turns.failed[BASELINE] = str(error)
            self._stop = Stop.FAILED
            return
        self._stop = self._turns.run()

    def _one(self, name: str, number: int) -> ProgramLaunch:
        """Launch an arm once. Raises `ArmFailed`."""
        self._doing = f"{name}, round {number + 1}" if number >= 0 else "the baseline's launch before the rounds"
        log, started, began = self._log(name, number), timestamp(), time.monotonic()
        arm = self._plan.arms[name]
        # The first tells whether torch loads commbench in this program at all, and whether it makes steps.
        recording = Recorded(log) if self._metric.records or (number < 0 and arm.needs_commbench) else None
        try:
            ended = foreign.run(
                arm.command, env=arm.environment(recording.path if recording else None), cluster=self._plan.cluster,
                log=log, timeout_s=self._timeout_s, hold=self._folder.ranks_lock.descriptor,
            )  # fmt: skip
        except BaseException:
            if recording:
                recording.drop()
            raise
        line: dict[str, Any] = {
            "arm": name, "round": number, "seconds": ended.seconds, "took_s": time.monotonic() - began,
            "log": log.name, "started": started,
        }  # fmt: skip
        self._hear(name, log)
        try:
            steps, ranks = recording.close() if recording else ([], 0)
            if why := launches.why(ended, log, self._timeout_s):
                raise ArmFailed(why)
            if number < 0:
                self._settle(steps, ranks)
            value, count_ = self._metric.of(ended.seconds, log, steps)
        except ArmFailed as error:
            self._append({**line, "error": str(error)})
            self._console.note(f"{self._doing} failed: {error}")
            raise
        launched = ProgramLaunch(**line, value=value, cost=self._metric.cost(value), steps=count_)
        self._append(asdict(launched))
        return launched

    def _settle(self, steps: Sequence[float], ranks: int) -> None:
        """Decide what is compared, by the first launch. Raises `EnvironmentProblem` where no profile would matter."""
        if not ranks and any(arm.needs_commbench for arm in self._plan.arms.values()):
            raise EnvironmentProblem(
                "the program has no process group of torch.distributed that commbench sees, so that a profile or a "
                "binding is worth nothing in it",
                hint="is it a torch program, in an environment where commbench is installed? commbench doctor says "
                "whether torch loads it; TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns that off",
            )
        self._metric = self._metric.settled(steps)
        self._console.note(f"compared: {self._metric.text}")

    def _hear(self, name: str, log: Path) -> None:
        """Hand on what commbench says inside the program, each once: that a profile is not for these ranks, say."""
        if not (self._plan.arms[name].profile or self._plan.arms[name].binding):
            return
        for text in launches.said(log):
            if text not in self._said:
                self._said.append(text)
                self._console.note(f"{name}: {text}")

    @property
    def _timeout_s(self) -> float:
        first = self._first
        return min(self._plan.timeout_s, max(LEAST_S, TIMES * first.seconds) if first else self._plan.timeout_s)

    def _log(self, name: str, number: int) -> Path:
        """Return the file of a launch's output: none that is there already, as of one that is made again."""
        stem = f"round-{number + 1:03d}-{name}" if number >= 0 else f"before-{name}"
        folder = self.folder / "logs"
        for attempt in range(1, 1_000_000):
            path = folder / (f"{stem}.log" if attempt == 1 else f"{stem}-{attempt}.log")
            if not path.exists():
                return path
        raise UsageError(f"{folder} is full of logs", hint="start a new comparison")

    def _append(self, line: Mapping[str, Any]) -> None:
        append_record(self.folder / LAUNCHES, json.dumps(line))

    def _say(self, paired: Paired) -> None:
        last = self.launches[-2:]
        one = last[0].cost / last[1].cost
        self._write("running")
        self._console.note(f"round {paired.rounds}: {one:.3f}x; so far {answer.interval(paired.ratio)}")

    def _write(self, status: str) -> None:
        metric = self._metric
        facts = answer.facts(
            self._turns.paired, self._turns.failed, what=metric.text, resolve=self._plan.limits.resolve,
            timed=metric.timed,
        )  # fmt: skip
        self.about |= {
            **facts,
            "status": status,
            "updated": timestamp(),
            "stopped": None if self._stop is None else str(self._stop),
            "claim": facts["rounds"] >= PAIRS_FOR_CLAIM,
            "spent_s": self._turns.spent_s,
            "names": arms.names(self._plan.arms),
            "title": arms.differences(self._plan.arms),
            "compared": metric.text,
            "metric_used": metric.pattern,
            "said": self._said,
            "unit": metric.unit,
            "fabric": str(Fabric.EMULATED if self._plan.cluster else Fabric.NONE),
        }
        self._folder.write_json("ab.json", self.about)

    def lines(self) -> list[str]:
        """Return what goes to stdout."""
        if self._request.format == "json":
            return [json.dumps(self.about)]
        values = {arm: [one.value for one in self.launches if one.arm == arm] for arm in ARMS}
        unit = f" in {self.about['unit']}" if self.about["unit"] else ""
        note = network_note(self.about["fabric"])
        lines = answer.table(self.about, values, self.about["names"], f"{self.about['compared']}{unit}")
        said = [f"# commbench said in the program: {text}" for text in self._said]
        notes = [f"# {note}"] if note else []
        return [*refolded([*lines, *said, *notes]), f"# next: {self.about['next']}"]
