"""`commbench sweep` under an existing launcher: every process is a rank; rank 0 composes, the others get the plan.

One process group is one launch, so intervals are of samples, and axes that need launches of their own (transport,
layout, environment) can hold one value only.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from commbench import transports
from commbench.commands import prepare, session
from commbench.console import Talk
from commbench.errors import CommbenchError, EnvironmentProblem, UsageError
from commbench.launch.environment import RankInfo
from commbench.launch.guard import die_with_parent
from commbench.launch.order import Order
from commbench.records import Measurement, Status
from commbench.runner import STARTS_WITHIN_S, Sweep, Tail
from commbench.store import RunFolder, repair
from commbench.worker import run as run_rank
from commbench.worker import start_rank

_ORDER_KEY = "commbench/order"
_SEES_KEY = "commbench/sees"  # + rank: whether it sees the run folder


def run(request: prepare.Request, rank: RankInfo) -> int:
    die_with_parent()
    if reason := transports.missing("gloo"):
        raise EnvironmentProblem(f"joining {rank.launcher} needs torch", hint=reason)
    from commbench.transports.torch_dist import meet_by_environment

    store = meet_by_environment()
    if rank.rank != 0:
        text = store.get(_ORDER_KEY).decode()
        if not text:  # rank 0 has said why
            return session.EXIT_USAGE
        order = Order.from_json(text)
        visible = order.folder.is_dir()
        store.set(f"{_SEES_KEY}/{rank.rank}", "1" if visible else "")
        return start_rank(order, rank, shared=store) if visible else session.EXIT_USAGE
    try:
        folder, sweep, order, talk = _prepare(request, rank)
    except CommbenchError:
        store.set(_ORDER_KEY, "")
        raise
    store.set(_ORDER_KEY, order.to_json())
    blind = [other for other in range(1, rank.size) if not store.get(f"{_SEES_KEY}/{other}")]
    if blind:
        raise EnvironmentProblem(
            f"ranks {', '.join(map(str, blind))} do not see {order.run_dir}",
            hint="put --out on a file system that all hosts share",
        )
    assert isinstance(sweep.reporter, session.Reporter)
    reporter = sweep.reporter

    def end(status: Status | None = None, reason: str = "") -> int:
        """Finish with what is on disk, after noting why the running case ended."""
        # The launcher ends all ranks as soon as one is gone; it grants half a minute, which is plenty.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if status is not None:
            _note_failure(folder, order, status, reason)
            talk.note(f"{status}: {reason}")
        sweep.load()
        return session.finish(request, folder, sweep, reporter, talk)

    session.interrupt_on_sigterm()
    _Watchdog(order, end).start()
    with talk:
        talk.progress(0, len(order.cases), None, f"joined {rank.launcher}: {rank.size} ranks")
        try:
            run_rank(order, rank, shared=store)
        except KeyboardInterrupt:
            end(Status.INTERRUPTED, f"stopped, by {rank.launcher} or by hand")
            return session.EXIT_INTERRUPTED
        except Exception as error:
            return end(Status.ERROR, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return end()


def _prepare(request: prepare.Request, rank: RankInfo) -> tuple[RunFolder, Sweep, Order, Talk]:
    if request.resume is not None:
        raise UsageError("--resume cannot join a launcher", hint="resume without torchrun, on the machine of the run")
    talk = Talk(quiet=request.quiet, verbose=request.verbose)
    forced = prepare.layout_of(rank)
    if any(word.startswith("launches=") and word != "launches=1" for word in request.words):
        raise UsageError(f"one start of {rank.launcher} is one launch", hint="leave launches out, or start it again")
    recipe, configs = prepare.configure([*request.words, "launches=1"], forced)
    configs = prepare.available(configs, talk)
    planned = prepare.expand(configs)
    runnable = [item for item in planned if not item.skip]
    outers = {item.case.outer.key: item.case.outer for item in runnable}
    if len(outers) != 1:
        raise UsageError(
            f"{len(outers)} set-ups were asked for, but one launch by {rank.launcher} can measure one",
            hint="transport, nodes, ranks_per_node and env.NAME take one value here",
        )
    outer = next(iter(outers.values()))
    if outer.env:
        raise UsageError("env.NAME comes too late here", hint=f"set the variables where {rank.launcher} is started")
    if outer.layout.ranks != rank.size:
        raise UsageError(
            f"{rank.launcher} started {rank.size} ranks, but nodes x ranks_per_node is "
            f"{outer.nodes} x {outer.ranks_per_node} = {outer.layout.ranks}",
            hint="leave both out to take the launcher's layout",
        )
    prepare.check_launcher(rank.launcher, planned)
    folder = prepare.create(request, recipe, configs, planned, joined=rank.launcher)
    sweep = session.of_run(request, folder, planned, talk)
    order = _order(folder, sweep)
    order.save()
    return folder, sweep, order, talk


def _order(folder: RunFolder, sweep: Sweep) -> Order:
    sweep.finish_skipped()
    item = sweep.launches[0]
    return Order(
        run_dir=str(folder.path.resolve()),
        attempt="joined",
        launch=0,
        outer=item.outer,
        cases=item.cases,
        timeout_s=sweep.timeout_s,
    )


def _events(order: Order) -> Tail:
    return Tail(order.folder / "events.jsonl", from_start=True)


def _note_failure(folder: RunFolder, order: Order, status: Status, reason: str) -> None:
    """The measurement of the case that was running, which no rank can write any more."""
    repair(folder.measurements_path)
    begun = [event["case_id"] for event in _events(order).read() if event["event"] == "begin"]
    measured = {measurement.case_id for measurement in folder.measurements()}
    if not begun or begun[-1] in measured:
        return
    place = next(index for index, case in enumerate(order.cases) if case.case_id == begun[-1])
    folder.append_measurement(
        Measurement(case_id=begun[-1], launch=0, attempt=order.attempt, order=place, status=status, reason=reason)
    )


class _Watchdog(threading.Thread):
    """No parent watches a joined launch, so rank 0 cuts a hung case itself; the launcher then ends the others."""

    def __init__(self, order: Order, end: Callable[[Status, str], int]) -> None:
        super().__init__(daemon=True)
        self._order = order
        self._end = end

    def run(self) -> None:
        events = _events(self._order)
        heard, allowed = time.monotonic(), max(self._order.timeout_s, STARTS_WITHIN_S)
        while True:
            time.sleep(1.0)
            for event in events.read():
                heard, allowed = time.monotonic(), self._order.timeout_s
                if event["event"] == "end":
                    return
            if time.monotonic() - heard > allowed:
                code = self._end(Status.TIMEOUT, f"no progress for {allowed:g} s")
                sys.stdout.flush()
                os._exit(code)
