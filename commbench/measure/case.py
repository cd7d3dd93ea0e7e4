"""One case on one rank: its buffers, its data, whether they come out right, and its times."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from commbench import algorithms, collectives
from commbench.algorithms import quantised
from commbench.algorithms.base import Bound
from commbench.algorithms.quantised import QuantisedBound
from commbench.launch.job import Job
from commbench.machine import memory
from commbench.measure import buffers, diagnosis, loop, readback, recording, samples, verify
from commbench.measure.buffers import Pair
from commbench.measure.checked_calls import CheckedCalls, WrongResult
from commbench.measure.events import Events
from commbench.measure.recording import RecordingComm, Sent
from commbench.rank_info import RankInfo
from commbench.records import Case, Measurement, Status
from commbench.run_folder import RunFolder, append_record
from commbench.stats import p95
from commbench.transports.base import Ready, Transport
from commbench.units import format_size

_REPLAYS = 16  # samples with data of their own after the timed ones, where those share theirs
NOT_CAPTURABLE = "looks at data on the host, which a graph cannot capture"
_LABELS = ("collective", "algorithm", "dtype", "size_bytes", "mode")


class Unmeasured(Exception):
    """A case that ends without numbers, on all ranks alike: its status and why."""

    def __init__(self, status: Status, reason: str, wrong: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.wrong = status, reason, wrong


class _CaseOnRank:
    """What the steps of one measurement share: prepare, check, time, check again."""

    def __init__(self, job: Job, transport: Transport, info: RankInfo, case: Case, events: Events) -> None:
        self.job, self.transport, self.info, self.case, self.events = job, transport, info, case, events
        self.spec = case.spec
        self.collective = collectives.get(case.collective)
        self.algorithm = algorithms.get(case.collective, case.algorithm)
        self.on_wire = self.collective.on_wire(self.spec)  # what the algorithm does
        self.wire: Pair | None = None  # where what travels is, if it is not the elements as they are
        self.partition = job.setup.layout.partition(case.groups)
        self.group = next(index for index, ranks in enumerate(self.partition) if info.rank in ranks)
        self.rank = self.partition[self.group].index(info.rank)
        self.pair_count = 0
        # One call is one sample, so that there is time to look at what each of them brings.
        self.each_call = case.mode == "isolated"

    def run(self) -> tuple[loop.Timing, dict[str, Any]]:
        """Return the times, and the fields of a measurement that only this rank's counters know.

        Raises `Unmeasured` where there are no times.
        """
        self._count_pairs()
        data = self._data(self._allocate())
        untimed = ["the first call", "the second call"]  # a result of the last call would pass the first one only
        try:
            if (said := recording.declared(self.algorithm, self.on_wire, self.rank)) is not None:
                sent: Sent = Counter()
                bound = self._prepare(sent)
                with _closing(bound):
                    self._check_declaration(bound, data, said, sent, untimed.pop(0))
            bound = self._prepare()
            with _closing(bound):
                return self._checked(bound, data, untimed)
        except WrongResult as wrong:
            raise self._wrong_result(data, wrong.when) from wrong

    def _data(self, pairs: list[Pair]) -> CheckedCalls:
        # Groups have data of their own: a block of another group is a wrong one.
        seed = self.case.seed + (self.group << 48)
        checker = verify.Checker(self.transport, self.collective, self.spec, self.rank, seed)
        return CheckedCalls(checker, pairs, self.events, self.job.setup, seed=self.case.seed, each_call=self.each_call)

    def _count_pairs(self) -> None:
        """Decide how many pairs of buffers take turns. There is memory for them, or nothing is measured. Collective."""
        if reason := self.transport.unsupported(self.case.buffers, one_sided=self.algorithm.one_sided):
            raise Unmeasured(Status.SKIPPED, reason)
        needed = buffers.nbytes(self.collective, self.spec, self.rank)
        # Uneven exchanges differ between ranks, and all must rotate over equally many buffers.
        largest = int(self.transport.all_gather([float(needed)]).max())
        device, case = self.transport.device, self.case
        count = memory.buffer_pairs(largest, device.cache_bytes(), cold=case.cache == "cold")
        if case.mode == "graph":
            count = min(count, loop.GRAPH_CALLS)
        if count > memory.MOST_PAIRS:
            raise Unmeasured(
                Status.SKIPPED,
                f"cold pairs of {format_size(largest)} would have to be {count} to get past the cache, "
                f"at most {memory.MOST_PAIRS} are made",
            )
        if not self.each_call and count == 1 and memory.as_warm(largest, device.cache_share(self.info.local_size)):
            count = 2  # with different data: what is left of the call before is wrong
        lacking = self._lacking_memory(largest, count)
        if count == 2 and case.cache == "warm" and lacking is not None:
            count, lacking = 1, self._lacking_memory(largest, 1)
        if lacking is not None:
            if lacking:
                sys.stderr.write(f"{case.label}, {format_size(case.size_bytes)}: {lacking}\n")
            raise Unmeasured(Status.OUT_OF_MEMORY, lacking or "another rank lacks memory, see its log")
        self.pair_count = count

    def _lacking_memory(self, largest: int, count: int) -> str | None:
        """Ask first: Linux grants memory that it does not have, and kills whoever touches it. Collective.

        Return None where all ranks have memory for `count` pairs, else in words what this one lacks, if it does.
        """
        # Others find their place in symmetric buffers because those are alike on all ranks.
        symmetric = self.case.buffers == "symmetric"
        each = largest if symmetric else buffers.nbytes(self.collective, self.spec, self.rank)
        needed = each * count + quantised.scratch_bytes(self.algorithm, self.spec)
        lacking = self.transport.device.missing_memory(needed, self.info.local_size)
        return lacking if self.transport.all_gather([float(bool(lacking))]).any() else None

    def _allocate(self) -> list[Pair]:
        pairs: list[Pair] = []
        failure = ""
        one_sided = self.algorithm.one_sided
        try:
            pairs = buffers.allocate(
                self.transport, self.collective, self.spec, self.rank, self.pair_count, one_sided=one_sided
            )
            if self.on_wire is not self.spec:
                (self.wire,) = buffers.allocate(
                    self.transport, self.collective, self.on_wire, self.rank, 1, one_sided=one_sided
                )
        except Exception as error:
            failure = _allocation_failure(self.transport, error)
        self._together(failure)
        return pairs

    def _prepare(self, sent: Sent | None = None) -> Bound:
        """Return the algorithm, ready for calls; `sent` takes notes of what these will send."""
        bound: Bound | None = None
        failure = ""
        try:
            self.transport.publish()
            comm = self.transport.world
            if self.case.groups != "world":
                comm = comm.subgroup(self.partition)
            if sent is not None:
                comm = RecordingComm(comm, range(self.spec.ranks), sent)
            bound = self.algorithm.prepare(comm, self.on_wire)
            if self.wire is not None:
                bound = QuantisedBound(bound, self.spec, self.rank, self.wire)
        except Exception as error:
            failure = _allocation_failure(self.transport, error)
        try:
            self._together(failure)
        except Unmeasured:
            if bound is not None:
                bound.close()
            raise
        assert bound is not None
        return bound

    def _together(self, failure: str) -> None:
        """Keep ranks together between the parts of a preparation; raise on all where one has failed."""
        votes = self.transport.all_gather([float(bool(failure))])
        if failed := [rank for rank, row in enumerate(votes) if row[0]]:
            ranks = ", ".join(map(str, failed))
            raise Unmeasured(Status.OUT_OF_MEMORY, f"rank {ranks}: {failure or 'out of memory, see its log'}")

    def _check_declaration(self, bound: Bound, data: CheckedCalls, said: Sent, sent: Sent, name: str) -> None:
        """Make one untimed call, and hold what it sends against what the algorithm says that it sends."""
        (ready,) = bound.bind(data.pairs[:1])
        data.call(ready, name, "before timing")
        if text := recording.difference(said, sent):
            sys.stderr.write(f"{self.case.label}, {format_size(self.case.size_bytes)}: {text}\n")
        seen = self.transport.all_gather([float(bool(text))])
        if odd := [rank for rank, row in enumerate(seen) if row[0]]:
            first = odd[0]
            known = text if first == self.info.rank else f"see logs/{self.job.attempt}/rank-{first}.log"
            raise Unmeasured(
                Status.DECLARATION_MISMATCH,
                f"{self.case.algorithm} does not send what its steps() declare: rank {first}: {known}",
            )

    def _checked(self, bound: Bound, data: CheckedCalls, untimed: Sequence[str]) -> tuple[loop.Timing, dict[str, Any]]:
        """Time the calls, and check what they bring; `untimed` names the calls before."""
        case, transport = self.case, self.transport
        if case.mode == "graph" and not bound.capturable:
            raise Unmeasured(Status.SKIPPED, f"{case.algorithm} {NOT_CAPTURABLE}")
        ready = bound.bind(data.pairs)
        for name in untimed:
            data.call(ready[0], name, "before timing")
        beside = case.overlap != "none"
        timing = loop.measure(transport, ready, case.policy, mode=case.mode, observer=data, beside=beside)
        assert data.meter is not None
        metered = data.meter.read(len(timing.calls))
        if not self.each_call:
            if self.collective.repeatable(self.spec):
                data.used(sorted({call % self.pair_count for call in timing.calls[-self.pair_count :]}))
                data.check("after timing")
            self._replay(ready, timing, data)
        metered["checked_calls"] = data.checked
        data.call(ready[0], "the call after timing", "after timing")
        return timing, metered

    def _replay(self, ready: Sequence[Ready], timing: loop.Timing, data: CheckedCalls) -> None:
        """Make samples with data of their own, as those that were timed, and check what they leave. Collective.

        Every other one makes a single call on each pair of buffers, so that no call hides what another has left out.
        The rest have any number of calls up to that of a sample: whatever comes at every so manieth call is met.
        """
        draw = random.Random(f"{self.case.seed}/replays")  # alike on all ranks
        most = timing.calls_per_sample
        used = min(self.pair_count, most)
        for number in range(_REPLAYS):
            single = number % 2 == 0 or not self.collective.repeatable(self.spec)
            calls = used if single else draw.randint(used, most)
            data.load(f"replay {number + 1}", range(used))
            self.transport.barrier()
            if timing.whole is not None and self.collective.repeatable(self.spec):
                timing.whole()
            else:
                for call in itertools.islice(itertools.cycle(ready[:used]), calls):
                    if (work := call()) is not None:
                        work.wait()
            self.transport.synchronize()
            data.used(range(used))
            data.settle()
        data.check("after timing")

    def _wrong_result(self, data: CheckedCalls, when: str) -> Unmeasured:
        """Say which rank has which wrong block, and whose data it holds: in the row, and of each rank in its log."""
        texts = {}
        for rank, wrong in data.wrong_outputs.items():
            members = next(list(ranks) for ranks in self.partition if rank in ranks)
            texts[rank] = diagnosis.describe(rank, wrong, data.names, members)
        if self.info.rank in texts:
            sys.stderr.write(f"{self.case.label}, {format_size(self.case.size_bytes)}: {texts[self.info.rank]}\n")
        first, *others = sorted(texts)
        have = (
            f"ranks {', '.join(map(str, others))} have" if len(others) > 1 else f"rank {''.join(map(str, others))} has"
        )
        also = f"; {have} wrong elements too" if others else ""
        elements = sum(wrong.elements for wrong in data.wrong_outputs.values())
        return Unmeasured(Status.WRONG_RESULT, f"{when}: {texts[first]}{also}", elements)


@contextlib.contextmanager
def _closing(bound: Bound) -> Iterator[None]:
    """Close after the last call, but not after an error: what is enqueued may wait for ranks that do not come."""
    try:
        yield
    except (Unmeasured, WrongResult):
        bound.close()
        raise
    bound.close()


def measure_case(
    job: Job, transport: Transport, info: RankInfo, case: Case, place: int, events: Events
) -> tuple[Measurement, loop.Timing | None]:
    """Measure one case of a launch, the `place`-th; collective. Without times, the measurement says why."""
    began = time.monotonic()
    transport.case_begins({name: getattr(case, name) for name in _LABELS} | {"launch": job.launch})
    on_rank = _CaseOnRank(job, transport, info, case, events)
    transport.overlap(case.overlap != "none" or on_rank.algorithm.concurrent)

    def done(status: Status, reason: str = "", **values: Any) -> Measurement:
        return Measurement(
            case_id=case.case_id,
            launch=job.launch,
            attempt=job.attempt,
            order=place,
            status=status,
            reason=reason,
            elapsed_s=round(time.monotonic() - began, 3),
            **values,
        )

    try:
        timing, metered = on_rank.run()
    except Unmeasured as why:
        return done(why.status, why.reason, **({} if why.wrong is None else {"wrong": why.wrong})), None
    if timing.slowest_us.min() <= 0:
        return done(Status.ERROR, "a sample took no time: the clock cannot resolve this call; use mode=pipelined"), None
    return done(Status.OK, **_numbers(timing, on_rank), **metered), timing


def _numbers(timing: loop.Timing, on_rank: _CaseOnRank) -> dict[str, Any]:
    """Return the fields of a measurement that follow from its times."""
    transport, info = on_rank.transport, on_rank.info
    slowest = timing.slowest_us
    skew_us = timing.skew_us if timing.skew_us is not None else transport.timer(on_rank.case.mode).skew_us
    beside = {name: float(np.median(times.max(axis=1))) for name, times in timing.beside.items()}
    return {
        "warmup": timing.warmup_us.shape[0],
        "samples": slowest.size,
        "calls_per_sample": timing.calls_per_sample,
        "time_us": float(np.median(slowest)),
        "time_us_mean": float(np.median(timing.time_us.mean(axis=1))),
        "time_us_p95": p95(slowest),
        "preempted": timing.preempted,
        "load_average": os.getloadavg()[0] if transport.name != "scripted" else None,  # which has a virtual clock
        "host_us": float(np.median(timing.host_us.max(axis=1))),
        "skew_us": skew_us if info.local_size == info.size else None,
        "stop_reason": timing.stop_reason,
        "wrong": 0,
        "scratch_bytes": quantised.scratch_bytes(on_rank.algorithm, on_rank.spec),
        "buffer_pairs": on_rank.pair_count,
        **readback.clock(transport),
        **beside,
        **(samples.overlap_ratios(slowest, timing.beside) if beside else {}),
    }


def _allocation_failure(transport: Transport, error: Exception) -> str:
    """Return an out-of-memory error in words. Raises any other."""
    if not transport.is_out_of_memory(error):
        raise error
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def write_samples(folder: RunFolder, job: Job, case: Case, timing: loop.Timing, *, one_clock: bool) -> None:
    """Write them before the measurement's own line: samples without it are ignored, it without samples would be a loss.

    one_clock: all ranks are on one host, so that it can be told who left the barrier when.
    """
    begins = timing.begin_us - timing.begin_us.min(axis=1, keepdims=True)
    # Of two ranks one waits for the other; of all of them only the slowest counts.
    known = one_clock and case.collective == "pairs" and bool(np.isfinite(begins).all())
    line = {
        "case_id": case.case_id,
        "launch": job.launch,
        "warmup_us": _rounded(timing.warmup_us),
        "time_us": _rounded(timing.time_us),
        "host_us": _rounded(timing.host_us),
        **{name: _rounded(times) for name, times in timing.beside.items()},
        **({"begin_us": _rounded(begins)} if known else {}),
    }
    append_record(folder.samples_path(job.attempt), json.dumps(line, separators=(",", ":")))


def _rounded(values: Any) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in values.tolist()]
