"""`commbench sweep`: from the words on the command line to a finished run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commbench import launch, transports
from commbench.console import Talk
from commbench.errors import EXIT_OK, EnvironmentProblem, UsageError
from commbench.launch import placement, supervise
from commbench.machine import metadata
from commbench.rank_info import detect
from commbench.records import PlannedCase, Status
from commbench.run_folder import RunFolder
from commbench.sweep.prepare import (
    Request,
    check_fabrics,
    choose_launchers,
    configure,
    create,
    expand,
    layout_of,
    show_config,
    show_plan,
    show_script,
)
from commbench.sweep.runner import Sweep
from commbench.sweep.session import measure, of_run

if TYPE_CHECKING:
    import pandas as pd


def run(request: Request) -> int:
    """The exit code: 0 fine, 1 a case failed, 130 interrupted. Raises `CommbenchError` before anything starts."""
    rank = detect(os.environ)
    if rank is not None and not (request.dry_run or request.show_config):
        from commbench.sweep import join

        return join.run(request, rank, _draw)
    if rank is not None and rank.rank != 0:  # of a plan that all ranks could show, one shows it
        return EXIT_OK
    talk = Talk(quiet=request.quiet, verbose=request.verbose)
    if request.resume is not None:
        return measure(request, *_resume(request, talk), talk, _draw)
    recipe, configs = configure(request.words, layout_of(rank) if rank else None)
    if request.show_config:
        sys.stdout.write(show_config(configs))
        return EXIT_OK
    if request.launcher == "print":
        planned = expand(configs)
        check_fabrics(planned, dict.fromkeys(transports.TABLE, "print"))
        show_script(request, planned)
        return EXIT_OK
    launchers, configs = choose_launchers(request, configs, talk)
    planned = placement.check(check_fabrics(expand(configs), launchers), launchers, talk.note)
    if request.dry_run:
        show_plan(request, planned, launchers)
        return EXIT_OK
    folder = create(request, recipe, configs, planned, launchers)
    return measure(request, folder, of_run(request, folder, planned, talk), talk, _draw)


def _draw(frame: pd.DataFrame, meta: Mapping[str, Any], target: Path) -> list[Path]:
    from commbench import plots

    return plots.draw(frame, meta, target)


def _resume(request: Request, talk: Talk) -> tuple[RunFolder, Sweep]:
    """The killed run, ready to go on; refuses where its results would not belong together."""
    assert request.resume is not None
    if request.dry_run or request.show_config:
        raise UsageError(
            "--resume measures; it does not go with --dry-run or --show-config",
            hint="the plan of a run is in its plan.jsonl, its keys are in its config.yaml",
        )
    if request.words:
        raise UsageError(
            f"--resume takes no recipe or KEY=VALUE, but {request.words[0]!r} was given",
            hint="a resumed run keeps its own plan; for another plan start a new run",
        )
    folder = RunFolder.open(request.resume)
    about = folder.read_json("run.json")
    started_by = set(about["launchers"].values()) & set(launch.TABLE)
    for path in supervise.open_to_resume(folder, started_by, (folder.measurements_path, folder.cases_path)):
        talk.note(f"{path.name}: dropped a last line that was cut off when the run was killed")
    if about["joined"]:
        raise UsageError(
            f"{folder.run_id} was measured by ranks that {about['joined']} started, and cannot go on without it",
            hint=f"start a new run under {about['joined']}",
        )
    planned, digest = folder.plan()
    if digest != about["plan_digest"]:
        raise UsageError(f"{folder.plan_path} was changed since the run began", hint="start a new run")
    if changed := metadata.differences(about["machine"], metadata.collect()):
        raise UsageError(
            f"the machine is not what it was when {folder.run_id} began: {'; '.join(changed)}",
            hint="results from two machines do not belong in one run: start a new one",
        )
    items = [PlannedCase(case=case, skip=skip) for case, skip in planned]
    for before, now in zip(items, check_fabrics(items, about["launchers"]), strict=True):
        if now.skip != before.skip:
            raise EnvironmentProblem(
                f"{folder.run_id} cannot go on here: {now.skip}", hint="set the environment as it was, and resume again"
            )
    sweep = of_run(request, folder, items, talk)
    for row in folder.rows().values():
        if not (request.retry_failed and row.status not in (Status.OK, Status.SKIPPED)):
            sweep.reporter.row(row)
    sweep.load(retry_failed=request.retry_failed)
    talk.note(f"resuming {folder.run_id}: {sweep.done} of {sweep.total} measurements are there")
    return folder, sweep
