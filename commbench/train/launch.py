"""One launch of a training: starts its ranks, shows its metrics, and goes on with one that was stopped.

The training itself is `moe_ref.training.rank`, which ranks import by its name: nothing in commbench imports moe_ref.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import commbench
from commbench import fabric, launch, transports, variables
from commbench.algorithms import outside
from commbench.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    CommbenchError,
    EnvironmentProblem,
    UsageError,
    storage,
)
from commbench.launch import placement, supervise
from commbench.launch.job import Job
from commbench.launch.supervise import Watch
from commbench.machine import gpus, metadata
from commbench.processes.orphans import start_time
from commbench.profile import Scope
from commbench.profile import file as profile_file
from commbench.profile.scope import Here, check_setup
from commbench.run_folder import RunFolder, Tail, timestamp
from commbench.sweep import prepare
from commbench.train import config as training
from commbench.train import results, tensorboard
from commbench.train.config import TrainConfig
from commbench.train.progress import TrainConsole, TrainProgress

LAUNCHERS = ("local", "torchrun")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    words: tuple[str, ...] = ()
    out: Path = Path("results")
    resume: Path | None = None
    show_config: bool = False
    launcher: str = "local"
    allow_env: tuple[str, ...] = ()  # variables that load code, from a profile or a run to go on with
    format: str = "table"  # or json, or none: nothing on stdout
    quiet: bool = False
    plots: bool = True


class Ended(NamedTuple):
    """Says how one launch ended. `asked`: whether somebody asked it to stop, be it too late."""

    code: int
    folder: Path
    asked: bool


def once(request: TrainRequest) -> Ended:
    """Make one launch of a training, new or to go on with."""
    config, env = settings(request)
    check(config)
    check_env(request, config, env)
    console = TrainConsole(quiet=request.quiet)
    folder = open_folder(request, config)
    with ending(folder, console):
        job = make_job(folder, config, env, request.launcher)
        progress = TrainProgress(folder, job, console, stdout=request.format)
        launch.get(request.launcher).check()
        with console, _stopping(job) as asked:
            watched = supervise.watch(job, request.launcher, progress.on_event, progress.read_metrics)
            watched.listen()  # an end in the last moment is one
            code = finish(folder, job, progress, console, watched, request.launcher)
            return Ended(code, folder.path, asked.is_set())


@contextlib.contextmanager
def ending(folder: RunFolder, console: TrainConsole) -> Iterator[None]:
    """See to it that no run is said to be running when it is not, and that a disk without room ends it in words."""
    with storage(folder.path, f"make room, then go on with: commbench train --resume {folder.path}"):
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                end(folder, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", "", console)
            raise


def settings(request: TrainRequest) -> tuple[TrainConfig, dict[str, str]]:
    if request.resume is None:
        return training.compose(request.words)
    before = _opened(request.resume)
    about = results.read_about(before)
    saved = training.load(before.path / "config.json")
    config, typed = training.compose(request.words, first=json.loads(saved.to_json()))
    if changed := config.changed(saved):
        differences = ", ".join(f"{key}={there}" for key, (_, there) in changed.items())
        raise UsageError(f"the run that goes on has {differences}, and others would compute something else",
                         hint="leave these keys out, or start a new run")  # fmt: skip
    done = results.saved_step(before.path)
    if done is None and (saved.save_every is None or _was_saved(before.path, saved, about)):
        why = "save_every=null" if saved.save_every is None else "they have been removed"
        raise UsageError(f"{request.resume} has no checkpoints to go on from ({why})", hint="start a new run")
    if done is not None and config.steps < done:
        raise UsageError(f"steps={config.steps}, and {request.resume} has made {done}",
                         hint=f"steps={done} or more; without steps=N it goes on to {saved.steps}")  # fmt: skip
    kept = {name: value for name, value in about.get("env", {}).items() if name not in typed}
    variables.refuse_code(kept, f"the run {request.resume}", request.allow_env)
    return config, {**kept, **typed}


def _was_saved(path: Path, config: TrainConfig, about: Mapping[str, Any]) -> bool:
    """Return whether this run has come to a point where it must have saved."""
    last = max((line["step"] for line in results.steps(path)), default=0)
    return about.get("status") == "finished" or 0 < (config.save_every or 0) < last


def check(config: TrainConfig, *, joined: bool = False) -> None:
    """Raise what ranks would miss, before there is a run folder. `joined`: a launcher has placed them already."""
    transports.check(config.transport)
    if config.transport == "nccl" and not joined and config.ranks > (count := gpus.count(os.environ)):
        raise EnvironmentProblem(f"{config.ranks} ranks and {count} GPU{'s' * (count != 1)}: each rank needs its own",
                                 hint=f"ranks_per_node={count}, or see CUDA_VISIBLE_DEVICES")  # fmt: skip
    if config.tensorboard:
        tensorboard.check()
    if config.profile is not None:
        profile = profile_file.load(Path(config.profile))
        if not (joined or config.allow_mismatch or config.ranks == 1):  # which exchanges nothing
            check_setup(profile, _here(config), config.profile)
    if config.record_routing is not None and not (parent := Path(config.record_routing).parent).is_dir():
        raise UsageError(f"record_routing={config.record_routing}: there is no folder {parent}", hint="make it first")
    if config.path is not None and not Path(config.path).is_file():
        raise UsageError(f"no text {config.path!r}", hint="path=FILE, any file of bytes; without it, the sample")
    if config.emulated is not None:
        fabric.check(config.emulated)


def check_env(request: TrainRequest, config: TrainConfig, env: Mapping[str, str]) -> None:
    """Raise `UsageError` where the profile sets variables that load code; `env` is not its."""
    if (scope := scope_of(config)) is not None:
        its = {name: value for name, value in scope.env.items() if name not in env}
        variables.refuse_code(its, f"the profile {config.profile}", request.allow_env)


def _here(config: TrainConfig) -> Here:
    """Return what ranks find that are started on this machine, which is one node if its network is not emulated."""
    environ = {variables.FABRIC: str(config.emulated)} if config.emulated else {}
    nodes = config.nodes if config.emulated else 1
    return Here(transport=config.transport, nodes=nodes, ranks_per_node=config.ranks // nodes, environ=environ)


def _opened(path: Path) -> RunFolder:
    if not (path / "run.json").is_file():
        raise UsageError(
            f"no run in {str(path)!r}", hint="give the folder that commbench train printed, or results/latest"
        )
    folder = RunFolder(path.resolve())
    about = folder.read_json("run.json")
    if about.get("format_version") not in results.READABLE:
        raise UsageError(f"{path} is not a training: its format is {about.get('format_version')}",
                         hint="commbench sweep --resume goes on with a sweep")  # fmt: skip
    return folder


def open_folder(request: TrainRequest, config: TrainConfig) -> RunFolder:
    """Return a new folder, or the one to go on with, as it was until its ranks begin; locked, with nobody in it."""
    return _create(request, config) if request.resume is None else _reopen(request.resume, quiet=request.quiet)


def _create(request: TrainRequest, config: TrainConfig) -> RunFolder:
    folder = RunFolder.create(request.out, f"train-{config.recipe}")
    with folder.completed():
        _write_start(folder, request, config)
    return folder


def _write_start(folder: RunFolder, request: TrainRequest, config: TrainConfig) -> None:
    folder.lock.take()
    with contextlib.suppress(OSError):
        (folder.path / "samples").rmdir()  # of sweeps
    machine = metadata.collect()
    folder.write_json("env.json", {"machine": machine, "environment": metadata.environment(os.environ)})
    about = {
        "format_version": results.FORMAT,
        "run_id": folder.run_id,
        "recipe": config.recipe,
        "command": ["commbench", "train", *request.words],
        "commbench_version": commbench.__version__,
        "machine_text": prepare.machine_text(machine),
        "started": timestamp(),
        "machine": machine,
    }
    folder.write_json("config.json", json.loads(config.to_json()))
    folder.write_json("run.json", {**about, "status": "running"})


def _reopen(path: Path, *, quiet: bool) -> RunFolder:
    folder = _opened(path)
    supervise.open_to_resume(folder, LAUNCHERS, (folder.path / results.METRICS, folder.path / results.BREAKDOWN))
    if results.saved_step(folder.path) is None:
        TrainConsole(quiet=quiet).note(f"{folder.path} has no checkpoint yet: it begins again")
    return folder


def make_job(folder: RunFolder, config: TrainConfig, env: Mapping[str, str], launcher: str, joined: str = "") -> Job:
    logs = folder.path / "logs"
    attempt = next(name for name in (f"{number:03d}" for number in range(10**6)) if not (logs / name).exists())
    setup = config.setup(env)
    if (scope := scope_of(config)) is not None:  # as commbench exec would start it
        bound: dict[str, Any] = {}
        if config.binding == "none" and scope.binding != "none":
            bound = {"binding": scope.binding, "cpu_masks": scope.cpu_masks, "binding_memory": scope.binding_memory}
        setup = config.setup({**scope.env, **env}, **bound)
    late = {name: value for name, value in setup.env.items() if variables.differs(name, value, os.environ)}
    if joined and (late or setup.emulated):
        what = f"{', '.join(late)}, by env.NAME or the profile," if late else "fabric=emulated"
        raise UsageError(f"{what} comes too late for ranks that {joined} has started",
                         hint=f"{joined} .. commbench exec --profile FILE -- commbench train ..")  # fmt: skip
    job = Job(
        run_dir=str(folder.path.resolve()),
        attempt=attempt,
        launch=0,
        setup=setup,
        cases=(),
        timeout_s=config.timeout,
        placements=() if joined else tuple(placement.of_launch(setup, launcher)),
        host=metadata.collect()["host"] if setup.binding != "none" else "",
        parent_pid=0 if joined else os.getpid(),
        parent_started="" if joined else start_time(os.getpid()),
        algorithms=outside.for_ranks(folder.path, {one.key for one in outside.loaded()}),
        program=training.PROGRAM,
        settings={"config": json.loads(config.to_json()), "about": {"joined": joined, "env": dict(env)}},
    )
    job.save()
    return job


def scope_of(config: TrainConfig) -> Scope | None:
    """Return the profile's scope for these ranks, whose settings they are started with; they check the rest."""
    if config.profile is None:
        return None
    profile = profile_file.load(Path(config.profile))
    fits = [
        scope
        for scope in profile.scopes
        if scope.transport == config.transport
        and scope.nodes in (None, config.nodes)
        and scope.ranks_per_node in (None, config.ranks_per_node)
    ]
    return fits[0] if len(fits) == 1 else None


@contextlib.contextmanager
def _stopping(job: Job) -> Iterator[threading.Event]:
    """Let SIGTERM and Ctrl-C ask the ranks to save and end; a second one ends them at once."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        (job.folder / training.STOP).touch()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(
    folder: RunFolder, job: Job, progress: TrainProgress, console: TrainConsole, watched: Watch, launcher: str
) -> int:
    """Say how it has ended; return the exit code. Raises what ranks have refused."""
    if progress.ended is not None:
        if progress.ended["finished"]:
            return end(folder, "finished", f"run: {folder.path}", console, EXIT_OK)
        text = f"stopped at step {progress.ended['step']}"
        if progress.ended["saved"]:
            text += f" and saved; go on with: commbench train --resume {folder.path}"
        else:
            text += ", with nothing saved (save_every=null)"
        return end(folder, "interrupted", text, console, EXIT_INTERRUPTED)
    refused = Tail(job.folder / training.REFUSED, from_start=True).read()
    if refused:
        end(folder, "failed", "", console)
        raise CommbenchError(refused[0]["error"], hint=refused[0]["hint"], exit_code=refused[0]["exit_code"])
    if watched.timed_out:
        silence = f"no step for {watched.allowed_s:g} s{supervise.explain_silence(job)}"
        return end(folder, "failed", f"{silence}; see {job.folder}", console)
    reason = supervise.explain(job, launcher)
    reason.stop_if_full()
    said = [line for line in reason.last_lines() if line.strip()][-3:] or ["the ranks ended early"]
    return end(folder, "failed", f"{reason.text or said[0]}; logs: {job.folder}", console)


def end(folder: RunFolder, status: str, text: str, console: TrainConsole, code: int = EXIT_FAILED) -> int:
    if folder.read_json("run.json")["status"] == "running":  # not one that was refused when it was to go on
        folder.set_status(status)
    if text:
        (console.error if status == "failed" else console.note)(text)
    return code
