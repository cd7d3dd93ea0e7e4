"""`commbench ab` from its words to its answer: launches of somebody's program, each with a log of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import commbench
from commbench.ab import answer, arms, pairs
from commbench.ab.answer import count
from commbench.ab.arms import ProgramArm
from commbench.ab.metric import Metric
from commbench.ab.pairs import ARMS, BASELINE, Paired
from commbench.ab.turns import ArmFailed, Stop, TurnLimits, Turns
from commbench.console import Console
from commbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, CorruptFile, UsageError, storage
from commbench.launch import foreign, supervise
from commbench.launch.foreign import Cluster, ProgramEnd
from commbench.machine import metadata
from commbench.records import Fabric, network_note
from commbench.run_folder import RunFolder, append_line, read_lines, timestamp
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.sweep import foreign_keys, prepare
from commbench.sweep.key import Key, Number, OneOf, Parsed
from commbench.sweep.session import interrupt_on_sigterm
from commbench.units import format_seconds, parse_seconds

FORMAT = "program-1"  # of a folder; one of `commbench train ab` has none
LAUNCHES = "launches.jsonl"
_BUDGET = "30m"  # where neither rounds nor a budget is typed
_LATER = ("budget", "resolve")  # what a comparison that goes on may have another value of
_TIMES, _LEAST_S = 10, 60.0  # as long as the first launch, and no less: what takes longer hangs
_GROUP = "The comparison"


def _time(name: str, value: Any) -> float:
    return parse_seconds(name, str(value))


# fmt: off
KEYS: dict[str, Key] = {
    "rounds": Key(Number(int, 1, 10_000), "launches of each arm, all of them, whatever comes out; without it, until it "
                  f"is resolved, {pairs.MOST_ROUNDS} at the most", default=None, optional=True, group=_GROUP),
    "budget": Key(Parsed(_time, "90s, 30m, 2h"), f"time for all launches; {_BUDGET} where rounds is not set",
                  default=None, optional=True, group=_GROUP),
    "resolve": Key(Number(float, 0.0001, 1), "a difference that does not matter: none above it ends the comparison",
                   default=0.01, group=_GROUP),
    "warmup": Key(Number(int, 0, 1_000_000), "steps of a launch that do not count; null: a fifth, and two at the least",
                  default=None, optional=True, group=_GROUP),
    "better": Key(OneOf(("lower", "higher")), "which value of --metric is", default="lower", group=_GROUP),
    "timeout": Key(Parsed(_time, "90s, 30m, 2h"), f"of a launch; {_TIMES} times the first one where that is less",
                   default="1h", group=_GROUP),
}
# fmt: on


def explain_keys(width: int) -> str:
    """Return what help says of every key, in lines of `width` letters."""
    env = ["", "Environment variables:", "  env.NAME=A,B            one value for each arm; env.NAME=A: for both",
           "  candidate.env.NAME=A    of one arm alone, as often as needed; baseline. as well"]  # fmt: skip
    return foreign_keys.explain_keys(width, KEYS, (_GROUP,)) + "\n".join([*env, ""])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRequest:
    """What was typed. program: what stands after `--`."""

    words: tuple[str, ...]
    profiles: tuple[str, ...] = ()
    metric: str = ""
    program: tuple[str, ...] | None = None
    out: Path = Path("results")
    format: str = "table"
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramLaunch:
    """One launch of one arm. value: the median over `steps`; cost: less is better; null where it failed.

    seconds: the program's; took_s: with what is around it. error: why it has no value. log: its file's name.
    """

    arm: str
    round: int
    value: float
    cost: float
    steps: int
    seconds: float
    took_s: float
    log: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done, read from a request."""

    arms: Mapping[str, ProgramArm]
    cluster: Cluster | None
    metric: Metric
    limits: TurnLimits
    timeout_s: float
    request: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Return what may not change while it goes on."""
        its = {"arms": {name: arm.settings() for name, arm in self.arms.items()}, "metric": asdict(self.metric),
               "cluster": None if self.cluster is None else str(self.cluster),
               "rounds_asked": self.limits.rounds}  # fmt: skip
        return json.loads(json.dumps(its))  # type: ignore[no-any-return]


def plan(request: ProgramRequest) -> Plan:
    """Read what was typed. Raises `UsageError`."""
    common, own = arms.split(request.words)
    found = foreign_keys.read(common, KEYS)
    values = {name: KEYS[name].read(name, found.own[name]) for name in KEYS}
    rounds, budget = values["rounds"], values["budget"]
    return Plan(
        arms=arms.arms_of(request.program, request.profiles, found.env, own),
        cluster=found.cluster,
        metric=Metric(pattern=request.metric, warmup=values["warmup"], higher=values["better"] == "higher"),
        limits=TurnLimits(
            rounds=rounds,
            budget_s=parse_seconds("budget", _BUDGET) if rounds is None and budget is None else budget,
            resolve=values["resolve"],
        ),
        timeout_s=values["timeout"],
        request={name: getattr(request, name) for name in ("words", "profiles", "metric", "program")},
    )


def create(request: ProgramRequest) -> ProgramComparison:
    """Check all that can be checked before the first launch, and make the folder. Raises `CommbenchError`."""
    asked = plan(request)
    for arm in asked.arms.values():
        foreign.check(arm.command, asked.cluster, {**os.environ, **arm.environment()})
    folder = RunFolder.create(request.out, "ab")
    folder.link_latest()
    (folder.path / "samples").rmdir()
    folder.lock.take()
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


def resume(path: Path, request: ProgramRequest) -> ProgramComparison:
    """Go on with a comparison that was stopped, or has spent its budget. Raises `CommbenchError`.

    request: its words may set a larger budget or another `resolve`; all else is as it was.
    """
    if odd := [word for word in request.words if word.partition("=")[0] not in _LATER]:
        raise UsageError(f"{odd[0]} cannot change in the middle of a comparison",
                         hint=f"{'=.. and '.join(_LATER)}=.. may be typed beside --resume")  # fmt: skip
    if request.program is not None or request.profiles or request.metric:
        raise UsageError("--resume knows its program, its arms and its metric", hint=f"--resume {path} alone")
    about, launches = read(path)
    typed = about["request"]
    before = ProgramRequest(
        words=(*typed["words"], *request.words), profiles=tuple(typed["profiles"]), metric=typed["metric"],
        program=tuple(typed["program"]),
    )  # fmt: skip
    folder = RunFolder(path.resolve())
    try:
        os.chdir(about["folder"])
    except OSError as error:
        raise UsageError(f"the folder that it was started in, {about['folder']!r}, is gone: {error.strerror}",
                         hint="start it again") from error  # fmt: skip
    asked = plan(before)
    machine = prepare.machine_text(metadata.collect())
    changed = [name for name, value in asked.identity().items() if value != about[name]]
    changed += ["machine"] if machine != about["machine_text"] else []
    if changed:
        raise UsageError(f"{path} cannot go on: {', '.join(changed)} changed meanwhile", hint="start a new comparison")
    supervise.open_to_resume(folder, (), [folder.path / LAUNCHES])
    return ProgramComparison(request, asked, folder, about, launches)


def is_one(path: Path) -> bool:
    """Return whether a folder with an `ab.json` is of programs, not of `commbench train ab`."""
    return RunFolder(path).read_json("ab.json").get("format") == FORMAT


def read(path: Path) -> tuple[dict[str, Any], list[ProgramLaunch]]:
    """Return `ab.json` and the launches of a folder. Raises `CommbenchError` where it is none, or damaged."""
    if not (path / "ab.json").is_file():
        raise UsageError(f"no comparison in {str(path)!r}", hint="give the folder that commbench ab printed")
    about = RunFolder(path).read_json("ab.json")
    if about.get("format") != FORMAT:
        raise UsageError(f"{path} is no comparison of programs of this version",
                         hint="commbench plot draws those of commbench train ab")  # fmt: skip
    try:
        return about, [one for one in read_lines(path / LAUNCHES, _launch) if one is not None]
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{path / LAUNCHES}: {error}", hint="the folder is damaged: start again") from error


def _launch(line: str) -> ProgramLaunch | None:
    """Return a launch of launches.jsonl, None for one that failed."""
    raw = json.loads(line)
    if raw.pop("error", ""):
        return None
    return ProgramLaunch(**raw)


class ProgramComparison:
    """Measures a comparison of two arms. What it knows is in `ab.json` from the beginning."""

    def __init__(
        self,
        request: ProgramRequest,
        asked: Plan,
        folder: RunFolder,
        about: dict[str, Any],
        launches: Sequence[ProgramLaunch],
    ) -> None:
        self._request, self._plan, self._folder, self.about = request, asked, folder, about
        self._console = Console(quiet=request.quiet)
        self._doing = ""
        self._first = next((one for one in launches if one.round < 0), None)
        self._stop: Stop | None = None
        self._turns = Turns(
            asked.limits,
            self._one,
            self._say,
            launches=[one for one in launches if one.round >= 0],
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
        most = f"{limits.most} rounds" if limits.rounds is not None else f"up to {limits.most} rounds"
        most += f", {format_seconds(limits.budget_s)}" if limits.budget_s is not None else ""
        self._console.note(f"{arms.differences(self._plan.arms)}; {self._plan.metric.text}; {most}; in {self.folder}")
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
        ended = foreign.run(
            arm.command, env=arm.environment(), cluster=self._plan.cluster, log=log, timeout_s=self._timeout_s,
            hold=self._folder.ranks_lock.descriptor,
        )  # fmt: skip
        line: dict[str, Any] = {
            "arm": name, "round": number, "seconds": ended.seconds, "took_s": time.monotonic() - began,
            "log": log.name, "started": started,
        }  # fmt: skip
        try:
            if why := _why(ended, log, self._timeout_s):
                raise ArmFailed(why)
            value, steps = self._plan.metric.of(ended.seconds, log)
        except ArmFailed as error:
            self._append({**line, "error": str(error)})
            self._console.note(f"{self._doing} failed: {error}")
            raise
        launched = ProgramLaunch(**line, value=value, cost=self._plan.metric.cost(value), steps=steps)
        self._append(asdict(launched))
        return launched

    @property
    def _timeout_s(self) -> float:
        first = self._first
        return min(self._plan.timeout_s, max(_LEAST_S, _TIMES * first.seconds) if first else self._plan.timeout_s)

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
        append_line(self.folder / LAUNCHES, json.dumps(line))

    def _say(self, paired: Paired) -> None:
        last = self.launches[-2:]
        one = last[0].cost / last[1].cost
        self._write("running")
        self._console.note(f"round {paired.rounds}: {one:.3f}x; so far {answer.interval(paired.ratio)}")

    def _write(self, status: str) -> None:
        metric = self._plan.metric
        facts = answer.facts(
            self._turns.paired, self._turns.failed, what=metric.text, resolve=self._plan.limits.resolve,
            timed=not metric.pattern,
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
        return [*lines, f"# {note}"] if note else lines


def _why(ended: ProgramEnd, log: Path, timeout_s: float) -> str:
    """Return why a launch has failed, "" where it has not."""
    if ended.timed_out:
        return f"it has not ended within {format_seconds(timeout_s)} ({log.name})"
    if not ended.code:
        return ""
    number = ended.code - 128
    named = signal.Signals(number).name if number in [*signal.Signals] else ""
    text = f"exit code {ended.code}{f' ({named})' if named else ''}"
    last = next((line for line in reversed(_tail(log)) if line.strip()), "")
    return f"{text} ({log.name}{': ' + last.strip()[:200] if last else ''})"


def _tail(log: Path) -> list[str]:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        return file.read().decode("utf-8", "replace").splitlines()
