"""`commbench sweep` under an existing launcher: every process is a rank; rank 0 composes, the others get the plan.

One process group is one launch, so intervals are of samples, and axes that need launches of their own (transport,
layout, environment) can hold one value only.
"""

from __future__ import annotations

import os
import threading
import time

from commbench import output, transports
from commbench.commands import prepare, session
from commbench.console import Talk
from commbench.errors import CommbenchError, EnvironmentProblem, UsageError
from commbench.launch.environment import RankInfo
from commbench.launch.guard import die_with_parent
from commbench.launch.order import Order
from commbench.records import Measurement, Status
from commbench.runner import Sweep, Tail
from commbench.store import RunFolder
from commbench.worker import run as run_rank
from commbench.worker import start_rank

_KEY = "commbench/order"


def run(request: prepare.Request, rank: RankInfo) -> int:
    die_with_parent()
    if reason := transports.missing("gloo"):
        raise EnvironmentProblem(f"joining {rank.launcher} needs torch", hint=reason)
    from commbench.transports.torch_dist import meet_by_environment

    store = meet_by_environment()
    if rank.rank != 0:
        text = store.get(_KEY).decode()
        return start_rank(Order.from_json(text), rank, shared=store) if text else session.EXIT_USAGE
    try:
        folder, sweep, order, talk = _prepare(request, rank)
    except CommbenchError:
        store.set(_KEY, "")
        raise
    store.set(_KEY, order.to_json())
    _Watchdog(folder, order, sweep.timeout_s).start()
    with talk:
        talk.progress(0, len(order.cases), None, f"joined {rank.launcher}: {rank.size} ranks")
        if order.cases:
            run_rank(order, rank, shared=store)
    sweep.load()
    assert isinstance(sweep.reporter, session.Reporter)
    return session.finish(request, folder, sweep, sweep.reporter.writer, talk)


def _prepare(request: prepare.Request, rank: RankInfo) -> tuple[RunFolder, Sweep, Order, Talk]:
    if request.resume is not None:
        raise UsageError("--resume cannot join a launcher", hint="resume without torchrun, on the machine of the run")
    talk = Talk(quiet=request.quiet, verbose=request.verbose)
    forced = prepare.layout_of(rank)
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
    folder = prepare.create(request, recipe, configs, planned)
    reporter = session.Reporter(talk, output.WRITERS[request.format]())
    sweep = Sweep(
        folder,
        planned,
        seed=configs[0].seed,
        launcher=rank.launcher,
        timeout_s=configs[0].timeout,
        reporter=reporter,
    )
    order = _order(folder, sweep)
    order.save()
    return folder, sweep, order, talk


def _order(folder: RunFolder, sweep: Sweep) -> Order:
    sweep.finish_skipped()
    item = sweep.launches[0]
    return Order(run_dir=str(folder.path.resolve()), attempt="joined", launch=0, outer=item.outer, cases=item.cases)


class _Watchdog(threading.Thread):
    """No parent watches a joined launch, so rank 0 cuts a hung case itself; the launcher then ends the others."""

    def __init__(self, folder: RunFolder, order: Order, timeout_s: float) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._order = order
        self._timeout_s = timeout_s

    def run(self) -> None:
        events = Tail(self._order.folder / "events.jsonl", from_start=True)
        heard, running = time.monotonic(), ""
        while True:
            time.sleep(1.0)
            for event in events.read():
                heard = time.monotonic()
                running = event.get("case_id", running)
                if event["event"] == "end":
                    return
            if time.monotonic() - heard > self._timeout_s:
                reason = f"no progress for {self._timeout_s:g} s"
                place = next((i for i, case in enumerate(self._order.cases) if case.case_id == running), 0)
                self._folder.append_measurement(
                    Measurement(
                        case_id=self._order.cases[place].case_id,
                        launch=0,
                        attempt=self._order.attempt,
                        order=place,
                        status=Status.TIMEOUT,
                        reason=reason,
                    )
                )
                os.write(2, f"error: {reason}; results so far: {self._folder.path}\n".encode())
                os._exit(1)
