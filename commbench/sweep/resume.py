"""Going on with a sweep that was killed or interrupted."""

from __future__ import annotations

from commbench import launch, variables
from commbench.algorithms import outside
from commbench.analysis import sample_files
from commbench.console import Console
from commbench.errors import EnvironmentProblem, UsageError
from commbench.launch import supervise
from commbench.machine import metadata
from commbench.records import PlannedCase
from commbench.run_folder import RunFolder, drop_damaged, parse_measurement, parse_row
from commbench.serialise import ListDigest
from commbench.sweep.prepare import SweepRequest, check_fabrics
from commbench.sweep.runner import Sweep
from commbench.sweep.session import of_run


def resume(request: SweepRequest, console: Console) -> tuple[RunFolder, Sweep]:
    """Open a killed run to go on with. Raises `CommbenchError` where its results would not belong together."""
    folder, items = open_run(request, console)
    sweep = of_run(request, folder, items, console)
    take_over(sweep, console, retry_failed=request.retry_failed)
    return folder, sweep


def take_over(sweep: Sweep, console: Console, *, retry_failed: bool = False) -> None:
    """Let a sweep have what its run has already, and say how much that is."""
    sweep.load(retry_failed=retry_failed, tell=True)
    console.note(f"resuming {sweep.folder.run_id}: {sweep.done} of {sweep.total} measurements are there")


def open_run(request: SweepRequest, console: Console) -> tuple[RunFolder, list[PlannedCase]]:
    """Open a killed run, whole again and locked, and return it with its plan. Raises `CommbenchError`."""
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
    if about["joined"]:
        raise UsageError(
            f"{folder.run_id} was measured by ranks that {about['joined']} started, and cannot go on without it",
            hint=f"start a new run under {about['joined']}",
        )
    outside.require(outside.read(about.get("algorithms", ())), f"the run {request.resume}")
    digest = ListDigest()
    items = folder.plan(digest)
    if str(digest) != about["plan_digest"]:
        raise UsageError(f"{folder.plan_path} was changed since the run began", hint="start a new run")
    if changed := metadata.differences(about["machine"], metadata.collect()):
        raise UsageError(
            f"the machine is not what it was when {folder.run_id} began: {'; '.join(changed)}",
            hint="results from two machines do not belong in one run: start a new one",
        )
    for setup in {item.case.setup.key: item.case.setup for item in items}.values():
        variables.refuse_code(setup.env, f"the run {request.resume}", request.allow_env)
    for before, now in zip(items, check_fabrics(items, about["launchers"]), strict=True):
        if now.skip != before.skip:
            raise EnvironmentProblem(
                f"{folder.run_id} cannot go on here: {now.skip}", hint="set the environment as it was, and resume again"
            )
    started_by = set(about["launchers"].values()) & set(launch.TABLE)
    for path in supervise.open_to_resume(folder, started_by, (folder.measurements_path, folder.cases_path)):
        console.note(f"{path.name}: dropped a last line that was cut off when the run was killed")
    for text in drop_damaged_lines(folder):
        console.note(f"{text}; dropped, and measured again")
    return folder, items


def drop_damaged_lines(folder: RunFolder) -> list[str]:
    """Take what cannot be read out of the files of results, and say what it was."""
    files = [(folder.measurements_path, parse_measurement), (folder.cases_path, parse_row)]
    files += [(path, sample_files.parse) for path in sorted((folder.path / "samples").glob("*.jsonl"))]
    return [text for path, parse in files for text in drop_damaged(path, parse)]
