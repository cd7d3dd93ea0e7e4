"""`commbench sweep` under an existing launcher: every process is a rank; rank 0 composes, the others get the plan.

One process group is one launch, so intervals are of samples, and axes that need launches of their own (transport,
layout, environment) can hold one value only.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from commbench.algorithms import outside
from commbench.console import Console, print_error
from commbench.errors import EXIT_INTERRUPTED, EnvironmentProblem, UsageError, said, storage
from commbench.launch import placement, supervise
from commbench.launch.job import EVENTS, Job
from commbench.measure.rank import run as run_rank
from commbench.measure.rendezvous import (
    MpiRendezvous,
    Rendezvous,
    StartDeadline,
    Watchdog,
    follow,
    lead,
    leave,
    store_rendezvous,
)
from commbench.processes import cleanup
from commbench.processes.orphans import die_with_parent
from commbench.rank_info import RankInfo
from commbench.records import Measurement, PlannedCase, Status
from commbench.run_folder import RunFolder, Tail, repair
from commbench.sweep import prepare, session
from commbench.sweep.config import SweepConfig
from commbench.sweep.runner import Sweep

_POLL_S = 1.0  # of a thread in a process that measures


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedFlow:
    """What a command makes of ranks that a launcher has started."""

    words: Callable[[tuple[str, ...]], tuple[str, ...]]  # of what was typed: those of the sweep; on rank 0 alone
    expand: Callable[[Sequence[SweepConfig]], list[PlannedCase]]
    of_run: Callable[[prepare.SweepRequest, RunFolder, Sequence[PlannedCase], Console], Sweep]
    finish: Callable[[prepare.SweepRequest, RunFolder, Sweep, Console], int]  # what was measured; the exit code


def of_sweep(draw: session.Draw) -> JoinedFlow:
    """Return the flow of a sweep."""

    def finish(request: prepare.SweepRequest, folder: RunFolder, sweep: Sweep, console: Console) -> int:
        assert isinstance(sweep.reporter, session.ConsoleReporter)
        return session.finish(request, folder, sweep, sweep.reporter, console, draw)

    return JoinedFlow(words=lambda typed: typed, expand=prepare.expand, of_run=session.of_run, finish=finish)


def run(request: prepare.SweepRequest, rank: RankInfo, flow: JoinedFlow) -> int:
    """Measure as one of the ranks; return the exit code. Raises `CommbenchError` before anything is measured."""
    die_with_parent()
    deadline = StartDeadline(rank, quiet=request.quiet)
    rendezvous = _rendezvous(request, rank)
    if rank.rank != 0:
        return follow(rendezvous, rank, deadline)
    try:
        folder, sweep, job, console = _prepare(request, rank, flow)
    except BaseException:
        rendezvous.broadcast("")
        raise
    lead(rendezvous, job, deadline)
    ending = _Ending(request, folder, sweep, job, console, flow)
    session.interrupt_on_sigterm()
    ending.watchdog.start()
    with console:
        console.progress(0, len(job.cases), None, f"joined {rank.started_by}: {rank.size} ranks")
        try:
            run_rank(job, rank, shared=rendezvous.store)
        except KeyboardInterrupt:
            ending.broken(Status.INTERRUPTED, f"stopped, by {rank.started_by} or by hand")
            leave(EXIT_INTERRUPTED)
        except Exception as error:
            leave(ending.broken(Status.ERROR, said(error)))
    return ending.finish()


class _Ending:
    """Ends a joined sweep, once, whether its main thread or its watchdog comes to the end first."""

    def __init__(
        self,
        request: prepare.SweepRequest,
        folder: RunFolder,
        sweep: Sweep,
        job: Job,
        console: Console,
        flow: JoinedFlow,
    ) -> None:
        self._request, self._folder, self._sweep, self._job = request, folder, sweep, job
        self._console, self._flow = console, flow
        self._only_once = threading.Lock()
        # No grace: this rank may be waiting for one that failed inside a library that does not notice.
        self._watched = supervise.Watch(job, self._on_event, grace_s=0.0)
        self.watchdog = Watchdog(self._watched, self._given_up, pause_s=_POLL_S)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "end":
            self.watchdog.cease()

    def _given_up(self) -> int:
        if self._watched.timed_out:
            silence = supervise.explain_silence(self._job)
            return self.broken(Status.TIMEOUT, f"no progress for {self._watched.allowed_s:g} s{silence}")
        first = self._watched.failures[0]
        return self.broken(Status.ERROR, f"rank {first['rank']} failed: {first['error']}")

    def broken(self, status: Status, reason: str) -> int:
        """Finish after noting why the running case ended; return the exit code."""
        self._begin()
        return self._finish(lambda: self._note(status, reason))

    def finish(self) -> int:
        """Finish with what is on disk; return the exit code."""
        self._begin()
        return self._finish(lambda: None)

    def _note(self, status: Status, reason: str) -> None:
        _note_failure(self._folder, self._job, status, reason)
        self._console.note(f"{status}: {reason}")

    def _begin(self) -> None:
        self._only_once.acquire()  # whoever comes second waits for the end of the process
        # The launcher ends all ranks as soon as one is gone; it grants half a minute, which is plenty.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _finish(self, first: Callable[[], None]) -> int:
        cleanup.remove(self._job.folder)
        try:
            with storage(self._folder.path, "make room, then start a new run: ranks that joined cannot go on"):
                first()
                self._sweep.load()
                return self._flow.finish(self._request, self._folder, self._sweep, self._console)
        except EnvironmentProblem as error:  # this process may end hard, and nobody else would say it
            print_error(str(error), error.hint)
            return error.exit_code


def _rendezvous(request: prepare.SweepRequest, rank: RankInfo) -> Rendezvous:
    if rank.launcher == "mpiexec" or _wants_mpi(request, rank):
        return MpiRendezvous(rank)
    return store_rendezvous(rank)


def _wants_mpi(request: prepare.SweepRequest, rank: RankInfo) -> bool:
    """Return whether ranks of srun, which are of either kind, shall meet by MPI: they must know before they meet."""
    return rank.launcher == "slurm" and "transport=mpi" in request.words


def _prepare(request: prepare.SweepRequest, rank: RankInfo, flow: JoinedFlow) -> tuple[RunFolder, Sweep, Job, Console]:
    if request.resume is not None:
        raise UsageError(
            "--resume cannot join a launcher", hint=f"resume without {rank.started_by}, on the machine of the run"
        )
    request = replace(request, words=flow.words(request.words))
    console = Console(quiet=request.quiet, verbose=request.verbose)
    recipe, configs = _configure(request, rank)
    prepare.refuse_code(request, configs)
    launchers, configs = prepare.choose_launchers(
        replace(request, launcher=rank.launcher), configs, console, joined=True
    )
    planned = flow.expand(configs)
    prepare.check_fabrics(planned, dict.fromkeys(launchers, rank.started_by))
    placement.check(planned, launchers, console.note, joined=rank.local_size)
    _check_one_launch(planned, rank)
    folder = prepare.create(request, recipe, configs, planned, launchers, joined=rank.started_by)
    sweep = flow.of_run(request, folder, planned, console)
    job = _job(folder, sweep)
    job.save()
    return folder, sweep, job, console


def _configure(request: prepare.SweepRequest, rank: RankInfo) -> tuple[str, list[SweepConfig]]:
    """Return the recipe's name and its configs, less the transports that these ranks cannot use."""
    if any(word.startswith("launches=") and word != "launches=1" for word in request.words):
        raise UsageError(f"one start of {rank.started_by} is one launch", hint="leave launches out, or start it again")
    recipe, configs = prepare.configure([*request.words, "launches=1"], prepare.layout_of(rank))
    if any(word.startswith("transport=") for word in request.words):  # which is then checked as it is
        return recipe, configs
    kinds = ("mpi",) if rank.launcher == "mpiexec" or _wants_mpi(request, rank) else ("gloo", "scripted")
    usable = [replace(item, transport=[t for t in item.transport if t in kinds]) for item in configs]
    if not any(item.transport for item in usable):
        asked = ", ".join(dict.fromkeys(t for item in configs for t in item.transport))
        raise UsageError(
            f"{recipe} measures over {asked}, which these ranks of {rank.started_by} cannot",
            hint="for MPI under srun write transport=mpi on the command line; else start ranks with mpiexec",
        )
    return recipe, [item for item in usable if item.transport]


def _check_one_launch(planned: Sequence[PlannedCase], rank: RankInfo) -> None:
    """Raise `UsageError` where these ranks cannot measure the whole plan."""
    setups = {item.case.setup.key: item.case.setup for item in planned if not item.skip}
    if len(setups) != 1:
        raise UsageError(
            f"{len(setups)} set-ups were asked for, but one launch by {rank.started_by} can measure one",
            hint="transport, nodes, ranks_per_node, layout, binding and env.NAME take one value here",
        )
    setup = next(iter(setups.values()))
    if setup.env:
        raise UsageError("env.NAME comes too late here", hint=f"set the variables where {rank.started_by} is started")
    if setup.layout.ranks != rank.size:
        raise UsageError(
            f"{rank.started_by} started {rank.size} ranks, but nodes x ranks_per_node is "
            f"{setup.nodes} x {setup.ranks_per_node} = {setup.layout.ranks}",
            hint="leave both out to take the launcher's layout",
        )


def _job(folder: RunFolder, sweep: Sweep) -> Job:
    sweep.finish_skipped()
    item = sweep.launches[0]
    return Job(
        run_dir=str(folder.path.resolve()),
        attempt="joined",
        before=sweep.before,
        launch=0,
        setup=item.setup,
        cases=item.cases,
        timeout_s=sweep.timeout_s,
        algorithms=outside.for_ranks(folder.path, {(case.collective, case.algorithm) for case in item.cases}),
    )


def _note_failure(folder: RunFolder, job: Job, status: Status, reason: str) -> None:
    """Write the measurement of the case that was running, which no rank can write any more."""
    repair(folder.measurements_path)
    events = Tail(job.folder / EVENTS, from_start=True).read()
    begun = [event["case_id"] for event in events if event["event"] == "begin"]
    measured = {measurement.case_id for measurement in folder.measurements()}
    if not begun or begun[-1] in measured:
        return
    place = next(index for index, case in enumerate(job.cases) if case.case_id == begun[-1])
    folder.append_measurement(
        Measurement(case_id=begun[-1], launch=0, attempt=job.attempt, order=place, status=status, reason=reason)
    )
