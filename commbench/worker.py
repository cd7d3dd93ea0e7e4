"""What every rank runs: connect, then measure the cases of one launch in order. Rank 0 writes.

`python -m commbench.worker ORDER.json` is what launchers start; `local` calls `run` in ranks that it forked.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from commbench import algorithms, check, collectives, measure, transports
from commbench.launch.environment import RankInfo, detect
from commbench.launch.guard import die_with_parent, exit_if_orphaned
from commbench.launch.order import Order
from commbench.memory import available_bytes, buffer_pairs
from commbench.records import Case, Measurement, Status
from commbench.stats import p95
from commbench.store import RunFolder, append_line, write_atomically
from commbench.transports.base import Transport
from commbench.units import format_size

RANK_FAILED = 1  # exit code of a rank that raised, and wrote what


class Events(measure.Progress):
    """Rank 0's running commentary, by which the parent knows what is going on and what hangs."""

    def __init__(self, order: Order, *, active: bool) -> None:
        self._path = order.folder / "events.jsonl"
        self._active = active
        self._last = 0.0

    def tell(self, event: str, **details: Any) -> None:
        if self._active:
            append_line(self._path, json.dumps({"event": event, **details}), durable=False)

    def beat(self) -> None:
        if time.monotonic() - self._last > 1.0:
            self._last = time.monotonic()
            self.tell("beat")


def run(order: Order, info: RankInfo, *, shared: Any = None) -> None:
    """Measure every case of `order` as rank `info.rank`. An exception in a rank ends it; the parent sees that."""
    folder = RunFolder(Path(order.run_dir))
    folder.ranks_lock.take(shared=True)  # a resume waits until all ranks of the killed run are gone
    transport = transports.load(order.outer.transport)(order.transport_options)
    transport.connect(info, shared)
    events = Events(order, active=info.rank == 0)
    _describe_ranks(order, transport, info)
    for place, case in enumerate(order.cases):
        events.tell("begin", case_id=case.case_id)
        measurement, timing = _measure_case(order, transport, info, case, place, events)
        if info.rank == 0:
            if timing is not None:
                _write_samples(folder, order, case, timing)
            folder.append_measurement(measurement)
        # Nobody begins the next case before this one is on disk.
        transport.all_gather([0.0])
    events.tell("end")
    transport.close()


def _measure_case(
    order: Order, transport: Transport, info: RankInfo, case: Case, place: int, events: Events
) -> tuple[Measurement, measure.Timing | None]:
    began = time.monotonic()
    spec = case.spec
    collective, algorithm = collectives.get(case.collective), algorithms.get(case.collective, case.algorithm)
    transport.case_begins(
        {
            "algorithm": case.algorithm,
            "collective": case.collective,
            "dtype": case.dtype,
            "size_bytes": case.size_bytes,
            "mode": case.mode,
            "launch": order.launch,
        }
    )

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

    inputs = collective.input_bytes(spec, info.rank)
    outputs = collective.output_bytes(spec, info.rank)
    count = buffer_pairs(inputs + outputs, cold=case.cache == "cold")
    needed = (inputs + outputs) * count + algorithm.scratch_bytes(spec)
    # Linux grants memory that it does not have, and kills whoever touches it; so ask first.
    short = max(row[0] for row in transport.all_gather([float(needed * info.local_size > available_bytes())]))
    if short:
        return done(
            Status.OUT_OF_MEMORY,
            f"{info.local_size} ranks x {format_size(needed)} on this host, {format_size(available_bytes())} available",
        ), None

    pairs: list[measure.Pair] = []
    bound = None
    failure = ""
    try:
        pairs = [(transport.world.empty(outputs), transport.world.empty(inputs)) for _ in range(count)]
    except Exception as error:
        failure = _allocation_failure(transport, error)
    if not _failed_ranks(transport, failure):
        try:
            bound = algorithm.prepare(transport.world, spec)
        except Exception as error:
            failure = _allocation_failure(transport, error)
    if failed := _failed_ranks(transport, failure):
        ranks = ", ".join(map(str, failed))
        return done(Status.OUT_OF_MEMORY, f"rank {ranks}: {failure or 'out of memory, see its log'}"), None
    assert bound is not None

    def wrong(salt: int, pair: measure.Pair, *, call: bool) -> int:
        """Elements wrong on all ranks together; with `call`, after a fresh call with the data of `salt`."""
        out, inp = pair
        if call:
            check.fill_input(transport, inp, collective, spec, seed=case.seed, salt=salt)
            check.poison(transport, out, collective, spec, seed=case.seed, salt=salt)
            transport.barrier()
            bound.start(out, inp).wait()
            transport.synchronize()
        mine = check.count_wrong(transport, out, collective, spec, seed=case.seed, salt=salt)
        events.beat()
        return int(sum(row[0] for row in transport.all_gather([float(mine)])))

    try:
        # Two calls with different data: a result of the last call would pass the first one only.
        bad = wrong(1, pairs[0], call=True) or wrong(2, pairs[0], call=True)
        if bad:
            return done(Status.WRONG_RESULT, "before timing", wrong=bad), None
        for out, inp in pairs:
            check.fill_input(transport, inp, collective, spec, seed=case.seed, salt=2)
            check.poison(transport, out, collective, spec, seed=case.seed, salt=2)
        timing = measure.measure(transport, bound, pairs, case.policy, mode=case.mode, progress=events)
        calls = timing.warmup_us.shape[0] + timing.time_us.shape[0] * timing.calls_per_sample
        # What the last timed call left behind, then a fresh call.
        bad = wrong(2, pairs[(calls - 1) % count], call=False) or wrong(3, pairs[0], call=True)
        if bad:
            return done(Status.WRONG_RESULT, "after timing", wrong=bad), None
    finally:
        bound.close()
    slowest = timing.slowest_us
    return done(
        Status.OK,
        warmup=timing.warmup_us.shape[0],
        samples=slowest.size,
        calls_per_sample=timing.calls_per_sample,
        time_us=float(np.median(slowest)),
        time_us_mean=float(np.median(timing.time_us.mean(axis=1))),
        time_us_p95=p95(slowest),
        host_us=float(np.median(timing.host_us.max(axis=1))),
        stop_reason=timing.stop_reason,
        wrong=0,
        scratch_bytes=algorithm.scratch_bytes(spec),
        buffer_pairs=count,
        link_gbps={str(link): rate for link, rate in (transport.link_gbps() or {}).items()} or None,
    ), timing


def _allocation_failure(transport: Transport, error: Exception) -> str:
    if not transport.is_out_of_memory(error):
        raise error
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def _failed_ranks(transport: Transport, failure: str) -> list[int]:
    """The ranks that failed. Also keeps ranks together between the parts of a preparation."""
    return [rank for rank, row in enumerate(transport.all_gather([float(bool(failure))])) if row[0]]


def _write_samples(folder: RunFolder, order: Order, case: Case, timing: measure.Timing) -> None:
    """Before the measurement's own line: samples without it are ignored, it without samples would be a loss."""
    line = {
        "case_id": case.case_id,
        "launch": order.launch,
        "warmup_us": _rounded(timing.warmup_us),
        "time_us": _rounded(timing.time_us),
        "host_us": _rounded(timing.host_us),
    }
    append_line(folder.samples_path(order.attempt), json.dumps(line, separators=(",", ":")))


def _rounded(values: Any) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in values.tolist()]


def _describe_ranks(order: Order, transport: Transport, info: RankInfo) -> None:
    """What really happened, per rank: read back from the kernel and the loaded libraries, not from the request."""
    description = {
        "rank": info.rank,
        "size": info.size,
        "local_rank": info.local_rank,
        "host": platform.node(),
        "pid": os.getpid(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "launcher": info.launcher,
        "versions": transport.versions(),
    }
    write_atomically(order.folder / f"rank-{info.rank}.json", json.dumps(description))


def start_rank(order: Order, info: RankInfo, *, shared: Any = None) -> int:
    """Run one rank with its output in its own log; the exit code."""
    log = os.open(order.folder / f"rank-{info.rank}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        run(order, info, shared=shared)
    except BaseException:
        traceback.print_exc()
        details = {"rank": info.rank, "error": traceback.format_exc(limit=0).strip().splitlines()[-1]}
        append_line(order.folder / "failures.jsonl", json.dumps(details), durable=False)
        return RANK_FAILED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    die_with_parent()
    order = Order.load(sys.argv[1])
    exit_if_orphaned(order.parent_pid, order.parent_started)
    info = detect(os.environ)
    if info is None:
        raise SystemExit("commbench.worker is started by a launcher; use `commbench sweep`")
    os._exit(start_rank(order, info))


if __name__ == "__main__":
    main()
