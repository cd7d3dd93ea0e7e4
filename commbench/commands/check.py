"""`commbench check`: is it healthy? One verdict, with names and evidence."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from commbench.check import bundle, describe, kept, keys, node_facts, plan
from commbench.check import run as engine
from commbench.console import Console
from commbench.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError, storage
from commbench.launch import placement
from commbench.rank_info import RankInfo, detect
from commbench.records import PlannedCase
from commbench.run_folder import RunFolder
from commbench.sweep import join, local_gpus, prepare, session
from commbench.sweep.config import SweepConfig
from commbench.sweep.prepare import SweepRequest
from commbench.sweep.resume import open_run, take_over
from commbench.sweep.runner import Sweep
from commbench.units import format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """Holds the command line of `commbench check`."""

    words: tuple[str, ...] = ()
    out: Path = Path("results")
    resume: Path | None = None
    launcher: str = ""
    effect: float
    against: Path | None = None
    machines: tuple[str, ...] = ()
    bundle: Path | None = None
    anonymous: bool = False
    dry_run: bool = False
    allow_env: tuple[str, ...] = ()
    format: str = "text"
    quiet: bool = False

    @property
    def of_sweep(self) -> SweepRequest:
        """Return the request of the sweep that a check is; its words are as they were typed."""
        return SweepRequest(words=self.words, out=self.out, resume=self.resume, launcher=self.launcher,
                            dry_run=self.dry_run, allow_env=self.allow_env, plots=False, quiet=self.quiet)  # fmt: skip


def run(request: CheckRequest) -> int:
    """Return the exit code: 0 healthy, 1 not healthy, 3 cannot tell, 130 interrupted. Raises `CommbenchError`."""
    if request.anonymous and request.bundle is None:
        raise UsageError("--anonymous needs a file to send", hint="--bundle FILE.tar.gz --anonymous")
    rank = detect(os.environ)
    if rank is not None and not request.dry_run:
        return join.run(request.of_sweep, rank, _joined(request, rank))
    if rank is not None and rank.rank:
        return EXIT_OK
    console = Console(quiet=request.quiet)
    if request.resume is not None:
        return _resume(request, console)
    typed, budget_s = keys.read(request.words)
    sweep_request = replace(request.of_sweep, words=plan.words(typed))
    recipe, configs = prepare.configure(sweep_request.words, plan.layout(sweep_request.words, rank))
    prepare.refuse_code(sweep_request, configs)
    launchers, configs = prepare.choose_launchers(sweep_request, configs, console)
    possible = prepare.check_fabrics(plan.expand(configs, budget_s), launchers)
    planned = placement.check(local_gpus.check(possible, launchers), launchers, console.note)
    if request.dry_run:
        prepare.show_plan(sweep_request, planned, launchers)
        return EXIT_OK
    asked = _asked(request, configs, planned, budget_s)
    folder = prepare.create(sweep_request, recipe, configs, planned, launchers)
    kept.begin(folder, asked)
    prepare.note_declared(planned, launchers, console)
    _note_short(planned, budget_s, console, joined=False)
    return _measure(request, folder, engine.of_run(folder, planned, console), asked, console)


def _note_short(planned: Sequence[PlannedCase], budget_s: float, console: Console, *, joined: bool) -> None:
    if text := plan.short(planned, budget_s, joined=joined):
        console.note(text)


def _asked(
    request: CheckRequest, configs: Sequence[SweepConfig], planned: Sequence[PlannedCase], budget_s: float
) -> kept.Asked:
    """Return what is asked, read and checked before anything is measured. Raises `UsageError`."""
    nodes = next(item.case.setup.nodes for item in planned)
    typed = next((item.launches for item in configs if "launches" in item.typed), None)
    against = ""
    if request.against is not None:
        against = str(RunFolder.open(request.against).path)  # `latest` is another one soon
    if request.bundle is not None:
        bundle.check(request.bundle)
    machines = {str(node): machine for node, machine in node_facts.recorded(request.machines, nodes).items()}
    return kept.Asked(budget_s=budget_s, launches=typed, effect=request.effect, against=against, machines=machines)


def _resume(request: CheckRequest, console: Console) -> int:
    asked_now = (request.machines, request.against, request.dry_run, request.launcher)
    if any(asked_now):
        raise UsageError("--resume takes no --machine, --against, --dry-run or --launcher",
                         hint="a resumed check keeps what was asked; for something else start a new one")  # fmt: skip
    assert request.resume is not None
    asked, spent_s, _ = kept.read(RunFolder.open(request.resume))
    folder, planned = open_run(request.of_sweep, console)
    sweep = engine.of_run(folder, planned, console)
    take_over(sweep, console)
    return _measure(request, folder, sweep, asked, console, spent_s)


def _measure(
    request: CheckRequest, folder: RunFolder, sweep: Sweep, asked: kept.Asked, console: Console, spent_s: float = 0.0
) -> int:
    go_on = f"go on with: commbench check --resume {shlex.quote(str(folder.path))}"
    with storage(folder.path, f"make room, then {go_on}"):
        folder.set_status("running")
        session.interrupt_on_sigterm()
        try:
            with console:
                spent_s = engine.measure(folder, sweep, asked, spent_s)
            return _end(request, folder, sweep, asked, console, spent_s)
        except KeyboardInterrupt:
            folder.set_status("interrupted")
            console.note(f"interrupted; {sweep.done} of {sweep.total} measurements are kept")
            console.note(go_on)
            return EXIT_INTERRUPTED


def _end(
    request: CheckRequest, folder: RunFolder, sweep: Sweep, asked: kept.Asked, console: Console, spent_s: float
) -> int:
    """Judge, say it, and write what is to be sent; return the exit code."""
    report = engine.finish(folder, sweep, asked, spent_s)
    answer = describe.answer(report, _short(folder.path))
    said = describe.text(report, answer)
    if request.format == "json":
        sys.stdout.write(json.dumps({**engine.as_dict(report, folder, spent_s), **answer.as_dict()}) + "\n")
    else:
        sys.stdout.write(said)
    if request.bundle is not None:
        bundle.write(folder, request.bundle, said, anonymous=request.anonymous)
        console.note(f"to send: {request.bundle}")
    console.note(f"{format_seconds(spent_s)}; run: {_short(folder.path)}")
    return report.verdict.exit_code


def _joined(request: CheckRequest, rank: RankInfo) -> join.JoinedFlow:
    """Return what ranks do that a launcher has started: all is measured in their one launch, several times."""
    asked: list[kept.Asked] = []
    budget: list[float] = []

    def words(typed: tuple[str, ...]) -> tuple[str, ...]:
        left, budget_s = keys.read(typed)
        budget.append(budget_s)
        return plan.words(left, rank)

    def expand(configs: Sequence[SweepConfig]) -> list[PlannedCase]:
        planned = plan.expand(configs, budget[0], joined=True)
        asked.append(_asked(request, configs, planned, budget[0]))
        return planned

    def of_run(sweep: SweepRequest, folder: RunFolder, planned: Sequence[PlannedCase], console: Console) -> Sweep:
        kept.begin(folder, asked[0])
        _note_short(planned, budget[0], console, joined=True)
        return engine.of_run(folder, planned, console)

    def finish(sweep_request: SweepRequest, folder: RunFolder, sweep: Sweep, console: Console) -> int:
        spent_s = sum(one.elapsed_s for one in folder.measurements())
        return _end(request, folder, sweep, asked[0], console, spent_s)

    return join.JoinedFlow(words=words, expand=expand, of_run=of_run, finish=finish)


def _short(path: Path) -> str:
    """Return the path, relative where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
