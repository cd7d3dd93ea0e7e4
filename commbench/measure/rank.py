"""What every rank runs: connect, then measure the cases of one launch in order. Rank 0 writes.

`python -m commbench.measure.rank ORDER.json` is what launchers start; `local` calls `run` in ranks that it forked.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from commbench import algorithms, collectives, fabric, transports, variables
from commbench.algorithms.base import Bound
from commbench.errors import said
from commbench.launch import placement
from commbench.launch.job import Order
from commbench.machine import infiniband, memory
from commbench.measure import buffers, loop, readback, samples, verify
from commbench.measure.buffers import Pair
from commbench.measure.hang_trace import Tracer
from commbench.measure.usage import Meter
from commbench.processes.orphans import die_with_parent, exit_if_orphaned
from commbench.rank_info import RankInfo, detect
from commbench.records import Case, Measurement, Outer, Status
from commbench.run_folder import RunFolder, append_line
from commbench.stats import p95
from commbench.transports.base import Ready, Transport
from commbench.units import format_size

_TIMED_SALT = 3  # of the data of timed calls; 1 and 2 are the calls before them, 4 is the one after
_LABELS = ("collective", "algorithm", "dtype", "size_bytes", "mode")
RANK_INTERRUPTED = 130
_kept: list[BaseException] = []  # errors, whose frames hold buffers that a broken GPU could not free without an abort
RANK_FAILED = 1  # exit code of a rank that raised, and wrote what


class Events:
    """A rank's running commentary. By that of rank 0 the parent knows what goes on; each leaves a trace if it hangs."""

    def __init__(self, order: Order, rank: int) -> None:
        self._path = order.folder / "events.jsonl"
        self._active = rank == 0
        self._last = 0.0
        self.timeout_s = order.timeout_s
        self.doing = "the start"
        self.tracer = Tracer(order.folder / f"trace-rank-{rank}.txt", order.timeout_s, lambda: self.doing)
        self.tracer.start()

    def tell(self, event: str, **details: Any) -> None:
        self.tracer.beat()
        if self._active:
            append_line(self._path, json.dumps({"event": event, **details}), durable=False)

    def beat(self) -> None:
        self.tracer.beat()
        if time.monotonic() - self._last > min(1.0, self.timeout_s / 10):
            self._last = time.monotonic()
            self.tell("beat")


def run(order: Order, info: RankInfo, *, shared: Any = None) -> None:
    """Measure every case of `order` as rank `info.rank`, or do what its program does.

    An exception in a rank ends it; the parent sees that.
    """
    folder = RunFolder(Path(order.run_dir))
    folder.ranks_lock.take(shared=True)  # a resume waits until all ranks of the killed run are gone
    seat = placement.take(order, info)
    if order.outer.emulated:
        fabric.enter(order.outer.layout.node(info.rank))
    events = Events(order, info.rank)  # after entering the network, which a thread from before would not see
    try:
        if order.program:
            importlib.import_module(order.program).run(order, info, shared, events, seat)
        else:
            _run_cases(order, info, shared, folder, events, seat)
    finally:
        events.tracer.stop()


def _run_cases(
    order: Order, info: RankInfo, shared: Any, folder: RunFolder, events: Events, seat: placement.Place
) -> None:
    asked = order.outer.env
    variables.check(asked, os.environ)
    ports = infiniband.ports() if info.local_rank == 0 else {}
    transport = transports.load(order.outer.transport)(order.transport_options)
    transport.connect(info, shared)
    before = transport.device.condition()
    seat.check_gpu(transport.device.identity())
    placed = seat.check("after the ranks have connected")
    binding = seat.describe(placed)
    readback.describe_rank(order, transport, info, {"before": before}, binding=binding)
    cpus, memory = readback.places(transport, placed)
    if infiniband.asked(asked) and not ports and info.rank == 0:
        events.tell("note", text=f"no InfiniBand or RoCE port on this host, so that {', '.join(asked)} decides nothing")
    between = readback.fabric_of(order, transport)
    for place, case in enumerate(order.cases):
        events.doing = f"{case.label}, {format_size(case.size_bytes)}"
        events.tell("begin", case_id=case.case_id)
        measurement, timing = _measure_case(order, transport, info, case, place, events)
        measurement = replace(measurement, fabric=between, rank_cpus=cpus, rank_memory=memory)
        readback.check_places(transport, seat)
        if info.rank == 0:
            if timing is not None:
                _write_samples(folder, order, case, timing, one_clock=info.local_size == info.size)
            folder.append_measurement(measurement)
        # Nobody begins the next case before this one is on disk.
        transport.all_gather([0.0])
    counted = infiniband.growth(ports, infiniband.ports()) if ports else {}
    if counted and infiniband.asked(asked) and info.rank == 0:
        events.tell("note", text=f"{infiniband.mode(asked) or 'routing'}: {infiniband.evidence(counted)}")
    told = variables.nccl_told(order.folder)
    if told is not None and info.rank == 0 and (text := variables.silence(asked, told)):
        events.tell("note", text=text)
    events.tell("end")
    after = {"after": transport.device.condition()} if before else {}
    if after or counted or told:
        readback.describe_rank(
            order, transport, info, {"before": before, **after}, binding=binding, ports=counted, told=told or {}
        )
    transport.close()


class _Job(loop.Observer):
    """One case on this rank: its buffers, its data, and whether they came out right."""

    def __init__(self, checker: verify.Checker, pairs: list[Pair], events: Events, outer: Outer) -> None:
        self.checker = checker
        self.outer = outer
        self.meter: Meter | None = None
        self.transport = checker.transport
        self.pairs = pairs
        self.events = events
        self.beat_s = min(loop.BEAT_S, events.timeout_s / 4)

    def beat(self) -> None:
        self.events.beat()

    def load(self, salt: int, pairs: Iterable[Pair]) -> None:
        """Data of the call numbered `salt` into `pairs`; outputs wrong for that call."""
        first: Pair | None = None
        for out, inp in pairs:
            if first is None or self.checker.spec.in_place:
                # The output first: in place it holds the input.
                self.checker.poison(out, salt)
                self.events.beat()
                self.checker.fill_input(inp, salt)
                self.events.beat()
                first = out, inp
            else:
                out[...], inp[...] = first

    def arm(self) -> None:
        """Data that no call has had yet, in all pairs: only timed calls can bring the right output."""
        self.load(_TIMED_SALT, self.pairs)
        self.meter = Meter(self.outer, self.transport)

    def wrong(self, salt: int, used: Iterable[int] = (0,)) -> int:
        """Elements wrong after the call numbered `salt`, in the outputs of the `used` pairs, all ranks together."""
        mine = 0
        for index in used:
            mine += self.checker.count_wrong(self.pairs[index][0], salt)
            self.events.beat()
        return int(self.transport.all_gather([float(mine)]).sum())

    def call(self, ready: Ready, salt: int) -> int:
        """One untimed call with fresh data; the elements that it got wrong."""
        self.load(salt, self.pairs[:1])
        self.transport.barrier()
        if (work := ready()) is not None:
            work.wait()
        self.transport.synchronize()
        return self.wrong(salt)


def _measure_case(
    order: Order, transport: Transport, info: RankInfo, case: Case, place: int, events: Events
) -> tuple[Measurement, loop.Timing | None]:
    began = time.monotonic()
    spec = case.spec
    collective, algorithm = collectives.get(case.collective), algorithms.get(case.collective, case.algorithm)
    transport.case_begins({name: getattr(case, name) for name in _LABELS} | {"launch": order.launch})
    transport.overlap(case.overlap != "none" or algorithm.concurrent)

    def done(status: Status, reason: str = "", **values: Any) -> Measurement:
        return Measurement(
            case_id=case.case_id,
            launch=order.launch,
            attempt=order.attempt,
            order=place,
            status=status,
            reason=reason,
            elapsed_s=round(time.monotonic() - began, 3),
            **values,
        )

    if lacking := transport.unsupported(case.buffers, one_sided=algorithm.one_sided):
        return done(Status.SKIPPED, lacking), None
    partition = order.outer.layout.partition(case.groups)
    group = next(index for index, ranks in enumerate(partition) if info.rank in ranks)
    rank = partition[group].index(info.rank)
    needed = buffers.nbytes(collective, spec, rank)
    # Uneven exchanges differ between ranks, and all must rotate over equally many buffers.
    largest = int(transport.all_gather([float(needed)]).max())
    count = memory.buffer_pairs(largest, transport.device.cache_bytes(), cold=case.cache == "cold")
    if case.mode == "graph":
        count = min(count, loop.GRAPH_CALLS)
    if count > memory.MOST_PAIRS:
        return done(
            Status.SKIPPED,
            f"cold pairs of {format_size(largest)} would have to be {count} to get past the cache, "
            f"at most {memory.MOST_PAIRS} are made",
        ), None
    # Others find their place in symmetric buffers because those are alike on all ranks.
    widest = largest if case.buffers == "symmetric" else None
    needed = (widest or needed) * count + algorithm.scratch_bytes(spec)
    # Linux grants memory that it does not have, and kills whoever touches it; so ask first.
    lacking = transport.device.missing_memory(needed, info.local_size)
    if lacking:
        sys.stderr.write(f"{case.label}, {format_size(case.size_bytes)}: {lacking}\n")
    if transport.all_gather([float(bool(lacking))]).any():
        return done(Status.OUT_OF_MEMORY, lacking or "another rank lacks memory, see its log"), None

    pairs: list[Pair] = []
    bound: Bound | None = None
    failure = ""
    try:
        pairs = buffers.allocate(transport, collective, spec, rank, count, one_sided=algorithm.one_sided)
    except Exception as error:
        failure = _allocation_failure(transport, error)
    failed = _failed_ranks(transport, failure)
    if not failed:
        try:
            transport.publish()
            comm = transport.world if case.groups == "world" else transport.world.subgroup(partition)
            bound = algorithm.prepare(comm, spec)
        except Exception as error:
            failure = _allocation_failure(transport, error)
        failed = _failed_ranks(transport, failure)
    try:
        if failed or bound is None:
            ranks = ", ".join(map(str, failed))
            return done(Status.OUT_OF_MEMORY, f"rank {ranks}: {failure or 'out of memory, see its log'}"), None
        if case.mode == "graph" and not bound.capturable:
            return done(Status.SKIPPED, f"{case.algorithm} looks at data on the host, which no graph can hold"), None
        ready = bound.bind(pairs)
        # Groups have data of their own: a block of another group is a wrong one.
        job = _Job(
            verify.Checker(transport, collective, spec, rank, case.seed + (group << 48)), pairs, events, order.outer
        )
        # Two calls with different data: a result of the last call would pass the first one only.
        if bad := job.call(ready[0], 1) or job.call(ready[0], 2):
            return done(Status.WRONG_RESULT, "before timing", wrong=bad), None
        timing = loop.measure(
            transport, ready, case.policy, mode=case.mode, observer=job, beside=case.overlap != "none"
        )
        assert job.meter is not None
        metered = job.meter.read(len(timing.calls))
        # What the timed calls left in every pair that they used, then one call with fresh data.
        used = sorted({call % count for call in timing.calls[-count:]}) if collective.repeatable(spec) else []
        if bad := job.wrong(_TIMED_SALT, used) or job.call(ready[0], 4):
            return done(Status.WRONG_RESULT, "after timing", wrong=bad), None
    finally:
        # After an exception, what is enqueued may wait for ranks that do not come.
        if bound is not None and sys.exception() is None:
            bound.close()
    slowest = timing.slowest_us
    skew_us = timing.skew_us if timing.skew_us is not None else transport.timer(case.mode).skew_us
    beside: dict[str, Any] = {name: float(np.median(times.max(axis=1))) for name, times in timing.beside.items()}
    beside |= samples.overlap_ratios(slowest, timing.beside) if beside else {}
    if slowest.min() <= 0:
        return done(Status.ERROR, "a sample took no time: the clock cannot resolve this call; use mode=pipelined"), None
    return done(
        Status.OK,
        warmup=timing.warmup_us.shape[0],
        samples=slowest.size,
        calls_per_sample=timing.calls_per_sample,
        time_us=float(np.median(slowest)),
        time_us_mean=float(np.median(timing.time_us.mean(axis=1))),
        time_us_p95=p95(slowest),
        host_us=float(np.median(timing.host_us.max(axis=1))),
        skew_us=skew_us if info.local_size == info.size else None,
        stop_reason=timing.stop_reason,
        wrong=0,
        scratch_bytes=algorithm.scratch_bytes(spec),
        buffer_pairs=count,
        links=fabric.links(order.outer.emulated) if order.outer.emulated else dict(transport.links()) or None,
        **metered,
        **readback.clock(transport),
        **beside,
    ), timing


def _allocation_failure(transport: Transport, error: Exception) -> str:
    if not transport.is_out_of_memory(error):
        raise error
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def _failed_ranks(transport: Transport, failure: str) -> list[int]:
    """The ranks that failed. Also keeps ranks together between the parts of a preparation."""
    return [rank for rank, row in enumerate(transport.all_gather([float(bool(failure))])) if row[0]]


def _write_samples(folder: RunFolder, order: Order, case: Case, timing: loop.Timing, *, one_clock: bool) -> None:
    """Before the measurement's own line: samples without it are ignored, it without samples would be a loss.

    `one_clock`: all ranks are on one host, so that it can be told who left the barrier when.
    """
    begins = timing.begin_us - timing.begin_us.min(axis=1, keepdims=True)
    # Of two ranks one waits for the other; of all of them only the slowest counts.
    told = one_clock and case.collective == "pairs" and bool(np.isfinite(begins).all())
    line = {
        "case_id": case.case_id,
        "launch": order.launch,
        "warmup_us": _rounded(timing.warmup_us),
        "time_us": _rounded(timing.time_us),
        "host_us": _rounded(timing.host_us),
        **{name: _rounded(times) for name, times in timing.beside.items()},
        **({"begin_us": _rounded(begins)} if told else {}),
    }
    append_line(folder.samples_path(order.attempt), json.dumps(line, separators=(",", ":")))


def _rounded(values: Any) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in values.tolist()]


def start_rank(order: Order, info: RankInfo, *, shared: Any = None) -> int:
    """Run one rank with its output in its own log; the exit code."""
    log = os.open(order.folder / f"rank-{info.rank}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        run(order, info, shared=shared)
    except KeyboardInterrupt:  # somebody's wish, and no failure
        return RANK_INTERRUPTED
    except BaseException as error:
        traceback.print_exc()
        note_failure(order.folder, info.rank, error)
        _kept.append(error)
        return RANK_FAILED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def note_failure(folder: Path, rank: int, error: BaseException) -> None:
    details = {"rank": rank, "error": said(error)}
    append_line(folder / "failures.jsonl", json.dumps(details), durable=False)


def main() -> None:
    die_with_parent()
    try:
        order = Order.load(sys.argv[1])
        exit_if_orphaned(order.parent_pid, order.parent_started)
        info = detect(os.environ)
        if info is None:
            raise RuntimeError("commbench.measure.rank is started by a launcher; use `commbench sweep`")
    except Exception as error:
        # The other ranks may wait for this one, so the sweep must hear of it.
        note_failure(Path(sys.argv[1]).parent, -1, error)
        raise
    if info.launcher != "torchrun":  # which alone says where to meet
        info = replace(info, rendezvous=f"address:{order.folder / 'address'}")
    code = start_rank(order, info)
    if code or order.outer.transport != "mpi":
        os._exit(code)
    # MPICH takes leave of mpiexec when the process ends in the ordinary way; without that its mpiexec kills the others.


if __name__ == "__main__":
    main()
