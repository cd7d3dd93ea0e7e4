"""`commbench train` under an existing launcher: every process is a rank; rank 0 composes, the others get the job."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from commbench.console import print_error
from commbench.errors import CommbenchError, UsageError
from commbench.launch.job import Job
from commbench.launch.supervise import Watch
from commbench.measure.rank import note_failure
from commbench.measure.rank import run as run_rank
from commbench.measure.rendezvous import StartDeadline, Watchdog, follow, lead, leave, store_rendezvous
from commbench.processes.orphans import die_with_parent
from commbench.rank_info import RankInfo
from commbench.run_folder import RunFolder
from commbench.train import config as training
from commbench.train import launch
from commbench.train.config import TrainConfig
from commbench.train.progress import TrainConsole, TrainProgress

_POLL_S = 0.1
_OTHERS_TELL_S = 2.0  # a rank that has the reason writes it down while this one hears that something is wrong


def run(request: launch.TrainRequest, info: RankInfo) -> tuple[int, Path | None]:
    """Train as one of the ranks; return the exit code, and on rank 0 the run folder. Raises `CommbenchError`."""
    if info.launcher == "mpiexec":
        raise UsageError(
            "commbench train does not join ranks of mpiexec", hint="start it with torchrun or srun, or alone"
        )
    die_with_parent()
    deadline = StartDeadline(info, quiet=request.quiet)
    rendezvous = store_rendezvous(info)
    if info.rank != 0:
        return follow(rendezvous, info, deadline), None
    console = TrainConsole(quiet=request.quiet)
    try:
        config, env = _settings(request, info)
        folder = launch.open_folder(request, config)
        with launch.ending(folder, console):
            job = launch.make_job(folder, config, env, info.launcher, info.started_by)
    except BaseException:
        rendezvous.broadcast("")
        raise
    with launch.ending(folder, console):
        lead(rendezvous, job, deadline)
        return _train(request, info, folder, job, console, rendezvous.store), folder.path


def _settings(request: launch.TrainRequest, info: RankInfo) -> tuple[TrainConfig, dict[str, str]]:
    layout = [f"nodes={info.size // info.local_size}", f"ranks_per_node={info.local_size}"]
    config, env = launch.settings(_with(request, layout))
    if config.ranks != info.size:
        raise UsageError(
            f"{info.started_by} started {info.size} ranks, but nodes x ranks_per_node is "
            f"{config.nodes} x {config.ranks_per_node} = {config.ranks}",
            hint="leave both out to take the launcher's layout",
        )
    launch.check(config, joined=True)
    launch.check_env(request, config, env)
    return config, env


def _train(
    request: launch.TrainRequest, info: RankInfo, folder: RunFolder, job: Job, console: TrainConsole, store: Any
) -> int:
    """Do rank 0's part, and tell of the others'."""
    progress = TrainProgress(folder, job, console, stdout=request.format)
    watched = Watch(job, progress.on_event, progress.read_metrics)
    finish = functools.partial(launch.finish, folder, job, progress, console, watched, info.launcher)
    watchdog = Watchdog(watched, functools.partial(_finished, finish), pause_s=_POLL_S)
    watchdog.start()
    with console:
        try:
            run_rank(job, info, shared=store)
        except Exception as error:  # whose frames may hold what cannot be freed any more: see `rank._kept`
            watchdog.stop()
            leave(_failed(error, folder, job, console, finish))
        watchdog.stop()
        return finish()


def _failed(error: Exception, folder: RunFolder, job: Job, console: TrainConsole, finish: Callable[[], int]) -> int:
    """Tell why: what a rank has refused, be it another one, else this rank's error. Return the exit code."""
    until = time.monotonic() + _OTHERS_TELL_S
    while not (job.folder / training.REFUSED).exists() and time.monotonic() < until:
        time.sleep(_POLL_S)
    if not isinstance(error, CommbenchError):
        note_failure(job.folder, 0, error)
    elif not (job.folder / training.REFUSED).exists():
        launch.end(folder, "failed", "", console)
        print_error(str(error), error.hint)
        return error.exit_code
    return _finished(finish)


def _finished(finish: Callable[[], int]) -> int:
    """Return the exit code where an error would reach nobody, as this process then ends hard."""
    try:
        return finish()
    except CommbenchError as error:
        print_error(str(error), error.hint)
        return error.exit_code


def _with(request: launch.TrainRequest, layout: Sequence[str]) -> launch.TrainRequest:
    """Add the launcher's layout, unless another one was typed, which then does not fit and is refused."""
    typed = {word.split("=")[0] for word in request.words}
    return dataclasses.replace(request, words=(*request.words, *(w for w in layout if w.split("=")[0] not in typed)))
