"""`commbench sweep`: from the words on the command line to a finished run folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

import commbench
from commbench import config, launch, metadata, output, plan, recipes, transports
from commbench.console import Talk
from commbench.errors import EnvironmentProblem, UsageError
from commbench.launch.environment import RankInfo, detect
from commbench.launch.order import Order
from commbench.plan import PlannedCase
from commbench.records import FORMAT_VERSION, Row, Status
from commbench.runner import RANKS_END_S, Sweep
from commbench.store import RunFolder, repair
from commbench.units import format_seconds, format_size

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command line of `commbench sweep`."""

    words: tuple[str, ...] = ()
    out: Path = Path("results")
    resume: Path | None = None
    retry_failed: bool = False
    dry_run: bool = False
    show_config: bool = False
    launcher: str = "local"
    format: str = "table"
    plots: bool = True
    quiet: bool = False
    verbose: bool = False


def run(request: Request) -> int:
    """The exit code: 0 fine, 1 a case failed, 130 interrupted. Raises `CommbenchError` before anything starts."""
    rank = detect(os.environ)
    if rank is not None and not (request.dry_run or request.show_config):
        from commbench import join

        return join.run(request, rank)
    talk = Talk(quiet=request.quiet, verbose=request.verbose)
    if request.resume is not None:
        return _measure(request, *_resume(request, talk), talk)
    recipe, configs = configure(request.words)
    if request.show_config:
        sys.stdout.write(_show(configs))
        return EXIT_OK
    configs = available(configs, talk)
    planned = expand(configs)
    check_launcher(request.launcher, planned)
    if request.dry_run:
        _dry_run(request, planned)
        return EXIT_OK
    folder = create(request, recipe, configs, planned)
    sweep = Sweep(
        folder,
        planned,
        seed=configs[0].seed,
        launcher=request.launcher,
        timeout_s=configs[0].timeout,
        reporter=Reporter(talk, output.WRITERS[request.format]()),
    )
    return _measure(request, folder, sweep, talk)


def configure(words: Sequence[str], forced: Mapping[str, Any] | None = None) -> tuple[str, list[config.SweepConfig]]:
    """The recipe's name and one validated config per combination of group choices.

    `forced` values take the place of the recipe's, but not of the user's own.
    """
    recipe, rest = ("quick", list(words)) if not words or "=" in words[0] else (words[0], list(words[1:]))
    overrides = recipes.parse_overrides(rest)
    for key, value in (forced or {}).items():
        overrides.values.setdefault(key, [value])
    return recipe, [config.build(recipe, composed, overrides) for composed in recipes.compose(recipe, overrides)]


def available(configs: Sequence[config.SweepConfig], talk: Talk) -> list[config.SweepConfig]:
    """The same configs less the transports that are not installed, each named once."""
    lacking = {name: transports.missing(name) for item in configs for name in item.transport}
    for reason in filter(None, lacking.values()):
        talk.note(reason)
    kept = [replace(item, transport=[name for name in item.transport if not lacking[name]]) for item in configs]
    kept = [item for item in kept if item.transport]
    if not kept:
        raise EnvironmentProblem(
            "none of the transports asked for is installed", hint="; ".join(filter(None, lacking.values()))
        )
    return kept


def expand(configs: Sequence[config.SweepConfig]) -> list[PlannedCase]:
    planned = plan.expand(configs)
    if all(item.skip for item in planned):
        reasons = sorted({item.skip for item in planned})
        raise UsageError("no case of this sweep can run", hint="; ".join(reasons[:3]))
    return planned


def check_launcher(launcher: str, planned: Sequence[PlannedCase]) -> None:
    launch.command(launcher)
    for name in sorted({item.case.outer.transport for item in planned}):
        able = transports.entry(name).launchers
        if launcher not in able:
            raise UsageError(
                f"transport {name} does not run under --launcher {launcher}", hint=f"use {' or '.join(able)}"
            )


def create(
    request: Request, recipe: str, configs: Sequence[config.SweepConfig], planned: Sequence[PlannedCase]
) -> RunFolder:
    """The run folder, with all that can be written before the first launch. Takes its lock."""
    folder = RunFolder.create(request.out, configs[0].recipe)
    folder.lock.take()
    lines = [{"case_id": item.case.case_id, "skip": item.skip, "case": asdict(item.case)} for item in planned]
    digest = folder.write_plan(lines)
    machine = metadata.collect()
    (folder.path / "config.yaml").write_text(_show(configs))
    folder.write_json("env.json", {"machine": machine, "environment": metadata.environment(os.environ)})
    outers = {item.case.outer.key: item.case.outer for item in planned}
    folder.write_json("topology.json", {"layouts": [asdict(outer.layout) for outer in outers.values()]})
    folder.write_json(
        "run.json",
        {
            "format_version": FORMAT_VERSION,
            "run_id": folder.run_id,
            "status": "running",
            "recipe": recipe,
            "command": ["commbench", "sweep", *request.words],
            "launcher": request.launcher,
            "timeout_s": configs[0].timeout,
            "seed": configs[0].seed,
            "plan_digest": digest,
            "commbench_version": commbench.__version__,
            "machine_text": machine_text(machine),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
        },
    )
    folder.link_latest()
    return folder


def _resume(request: Request, talk: Talk) -> tuple[RunFolder, Sweep]:
    """The killed run, ready to go on; refuses where its results would not belong together."""
    assert request.resume is not None
    if request.words:
        raise UsageError(
            f"--resume takes no recipe or KEY=VALUE, but {request.words[0]!r} was given",
            hint="a resumed run keeps its own plan; for another plan start a new run",
        )
    folder = RunFolder.open(request.resume)
    if not folder.lock.take():
        raise UsageError(f"{folder.path} is being measured by another commbench", hint="wait for it, or end it first")
    if not folder.ranks_lock.take(wait_s=RANKS_END_S):
        raise EnvironmentProblem(
            f"ranks of the killed run are still alive after {RANKS_END_S:.0f} s", hint="end them, then resume again"
        )
    folder.ranks_lock.release()
    about = folder.read_json("run.json")
    planned, digest = folder.plan()
    if digest != about["plan_digest"]:
        raise UsageError(f"{folder.plan_path} was changed since the run began", hint="start a new run")
    if changed := metadata.differences(about["machine"], metadata.collect()):
        raise UsageError(
            f"the machine is not what it was when {folder.run_id} began: {'; '.join(changed)}",
            hint="results from two machines do not belong in one run: start a new one",
        )
    for path in (folder.measurements_path, folder.cases_path):
        if repair(path):
            talk.note(f"{path.name}: dropped a last line that was cut off when the run was killed")
    items = [PlannedCase(case=case, skip=skip) for case, skip in planned]
    reporter = Reporter(talk, output.WRITERS[request.format]())
    sweep = Sweep(
        folder,
        items,
        seed=about["seed"],
        launcher=about["launcher"],
        timeout_s=about["timeout_s"],
        reporter=reporter,
    )
    for row in folder.rows().values():
        if not (request.retry_failed and row.status not in (Status.OK, Status.SKIPPED)):
            reporter.row(row)
    sweep.load(retry_failed=request.retry_failed)
    talk.note(f"resuming {folder.run_id}: {sweep.done} of {sweep.total} measurements are there")
    return folder, sweep


class Reporter:
    """Progress to stderr, rows to stdout."""

    def __init__(self, talk: Talk, writer: output.Writer) -> None:
        self.talk = talk
        self.writer = writer
        self.progress = talk.progress
        self.note = talk.note

    def row(self, row: Row) -> None:
        self.writer.row(row)
        self.talk.row(row)


def _measure(request: Request, folder: RunFolder, sweep: Sweep, talk: Talk) -> int:
    _set_status(folder, "running")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with talk:
            sweep.run()
    except KeyboardInterrupt:
        _set_status(folder, "interrupted")
        talk.note(f"interrupted; {sweep.done} of {sweep.total} measurements are kept")
        talk.note(f"go on with: commbench sweep --resume {_short(folder.path)}")
        return EXIT_INTERRUPTED
    assert isinstance(sweep.reporter, Reporter)
    return finish(request, folder, sweep, sweep.reporter.writer, talk)


def finish(request: Request, folder: RunFolder, sweep: Sweep, writer: output.Writer, talk: Talk) -> int:
    """Tables, Parquet, plots and the last words of a run whose cases are all finished."""
    from commbench import tables

    rows = [sweep.rows[item.case.case_id] for item in sweep.planned if item.case.case_id in sweep.rows]
    meta = folder.read_json("run.json")
    writer.end(rows, meta)
    tables.write_results(folder, rows)
    tables.write_samples(folder)
    failed = [row for row in rows if row.status not in (Status.OK, Status.SKIPPED)]
    _set_status(folder, "finished")
    if request.plots and any(row.status is Status.OK for row in rows):
        from commbench import plots

        for path in plots.draw(tables.frame(rows, folder.run_id), meta, folder.path / "plots"):
            talk.note(f"plot: {_short(path)}")
    ok = sum(row.status is Status.OK for row in rows)
    talk.note(
        f"{ok} cases ok, {len(rows) - ok - len(failed)} skipped, {len(failed)} failed; run: {_short(folder.path)}"
    )
    if failed:
        talk.note(f"measure the failed ones again: commbench sweep --resume {_short(folder.path)} --retry-failed")
    return EXIT_FAILED if failed else EXIT_OK


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _set_status(folder: RunFolder, status: str) -> None:
    about = folder.read_json("run.json")
    about["status"] = status
    about["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
    folder.write_json("run.json", about)


def _short(path: Path) -> str:
    """Relative where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def machine_text(machine: Mapping[str, Any]) -> str:
    """One line for captions: `AMD EPYC, 2 CPUs, x86_64, Python 3.11.7, torch 2.13.0`."""
    words = [machine["cpu"] or "unknown CPU", f"{machine['cpus']} CPUs", machine["machine"]]
    words.append(f"Python {machine['python']}")
    if version := machine["packages"].get("torch"):
        words.append(f"torch {version}")
    return ", ".join(words)


def _show(configs: Sequence[config.SweepConfig]) -> str:
    text: str = yaml.safe_dump_all([item.as_keys() for item in configs], sort_keys=False)
    return "# @package _global_\n" + text


def _dry_run(request: Request, planned: Sequence[PlannedCase]) -> None:
    if request.format == "json":
        import json

        for item in planned:
            line = {"case_id": item.case.case_id, "skip": item.skip, **asdict(item.case)}
            sys.stdout.write(json.dumps(line) + "\n")
        return
    lines = plan.describe(planned)
    skipped: dict[str, int] = {}
    for item in planned:
        if item.skip:
            skipped[item.skip] = skipped.get(item.skip, 0) + 1
    lines += [f"skipped: {count} x {reason}" for reason, count in skipped.items()]
    runnable = [item.case for item in planned if not item.skip]
    most = max(case.size_bytes * case.outer.layout.ranks * 2 for case in runnable)
    lines.append(f"largest case: {format_size(most)} of buffers on all ranks together")
    lines.append(f"time: at most about {format_seconds(plan.estimate_s(planned))}, start-up included")
    first = runnable[0]
    order = Order(run_dir="RUN", attempt="LAUNCH", launch=0, outer=first.outer, cases=(first,))
    words = launch.command(request.launcher)(Path("RUN/logs/LAUNCH/order.json"), order)
    lines.append(f"each launch runs: {' '.join(words)}")
    sys.stdout.write("\n".join(lines) + "\n")


def layout_of(rank: RankInfo) -> dict[str, int]:
    """The layout that a launcher's environment implies, as keys."""
    return {"nodes": rank.size // rank.local_size, "ranks_per_node": rank.local_size}
