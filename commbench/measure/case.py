"""One case on one rank: its buffers, its data, whether they come out right, and its times."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from commbench import algorithms, collectives, fabric
from commbench.algorithms.base import Bound
from commbench.launch.job import Job
from commbench.machine import memory
from commbench.measure import buffers, diagnosis, loop, readback, recording, samples, verify
from commbench.measure.buffers import Pair
from commbench.measure.diagnosis import WrongOutput
from commbench.measure.events import Events
from commbench.measure.recording import RecordingComm, Sent
from commbench.measure.usage import Meter
from commbench.rank_info import RankInfo
from commbench.records import Case, Measurement, Setup, Status
from commbench.run_folder import RunFolder, append_line
from commbench.stats import p95
from commbench.transports.base import Ready, Transport
from commbench.units import format_size

_TIMED_SALT, _LAST_SALT = 3, 4  # of the data of timed calls, and of the one after; 1 and 2 are those before
_LABELS = ("collective", "algorithm", "dtype", "size_bytes", "mode")


class Unmeasured(Exception):
    """A case that ends without numbers, on all ranks alike: its status and why."""

    def __init__(self, status: Status, reason: str, wrong: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.wrong = status, reason, wrong


class _CheckedData(loop.Observer):
    """The data of a case on this rank: fresh before calls, compared after them."""

    def __init__(self, checker: verify.Checker, pairs: list[Pair], events: Events, setup: Setup) -> None:
        self.checker = checker
        self.setup = setup
        self.meter: Meter | None = None
        self.transport = checker.transport
        self.pairs = pairs
        self.events = events
        self.beat_s = min(loop.BEAT_S, events.timeout_s / 4)
        self.wrong_outputs: dict[int, WrongOutput] = {}  # of the last check, by rank of the world

    def beat(self) -> None:
        """Say that this rank is still alive."""
        self.events.beat()

    def load(self, salt: int, pairs: Iterable[Pair]) -> None:
        """Put data of the call numbered `salt` into `pairs`, with outputs that are wrong for that call."""
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
        """Load data that no call has had yet into all pairs: only timed calls can bring the right output."""
        self.load(_TIMED_SALT, self.pairs)
        self.meter = Meter(self.setup, self.transport)

    def wrong(self, salt: int, used: Iterable[int] = (0,)) -> int:
        """Count the elements, over all ranks, that are wrong after the call numbered `salt` in the `used` pairs."""
        mine, first = 0, WrongOutput(0)
        for index in used:
            out = self.pairs[index][0]
            if count := self.checker.count_wrong(out, salt):
                first = first if mine else diagnosis.examine(self.checker, out, salt, count)
                mine += count
            self.events.beat()
        seen = self.transport.all_gather(first._replace(elements=mine).numbers())
        self.wrong_outputs = {rank: WrongOutput.from_numbers(row.tolist()) for rank, row in enumerate(seen) if row[0]}
        return sum(wrong.elements for wrong in self.wrong_outputs.values())

    def call(self, ready: Ready, salt: int) -> int:
        """Make one untimed call with fresh data; count the elements that it got wrong."""
        self.load(salt, self.pairs[:1])
        self.transport.barrier()
        if (work := ready()) is not None:
            work.wait()
        self.transport.synchronize()
        return self.wrong(salt)


class _CaseOnRank:
    """What the steps of one measurement share: prepare, check, time, check again."""

    def __init__(self, job: Job, transport: Transport, info: RankInfo, case: Case, events: Events) -> None:
        self.job, self.transport, self.info, self.case, self.events = job, transport, info, case, events
        self.spec = case.spec
        self.collective = collectives.get(case.collective)
        self.algorithm = algorithms.get(case.collective, case.algorithm)
        self.partition = job.setup.layout.partition(case.groups)
        self.group = next(index for index, ranks in enumerate(self.partition) if info.rank in ranks)
        self.rank = self.partition[self.group].index(info.rank)
        self.pair_count = 0

    def run(self) -> tuple[loop.Timing, dict[str, Any]]:
        """Return the times, and the fields of a measurement that only this rank's counters know.

        Raises `Unmeasured` where there are no times.
        """
        largest = self._count_pairs()
        self._check_memory(largest)
        data = self._data(self._allocate())
        untimed = [1, 2]  # calls with different data: a result of the last call would pass the first one only
        if (said := recording.declared(self.algorithm, self.spec, self.rank)) is not None:
            sent: Sent = Counter()
            bound = self._prepare(sent)
            with _closing(bound):
                self._check_declaration(bound, data, said, sent, untimed.pop(0))
        bound = self._prepare()
        with _closing(bound):
            return self._checked(bound, data, untimed)

    def _data(self, pairs: list[Pair]) -> _CheckedData:
        # Groups have data of their own: a block of another group is a wrong one.
        seed = self.case.seed + (self.group << 48)
        checker = verify.Checker(self.transport, self.collective, self.spec, self.rank, seed)
        return _CheckedData(checker, pairs, self.events, self.job.setup)

    def _count_pairs(self) -> int:
        """Decide how many pairs of buffers take turns; return the bytes of one on the rank with the largest."""
        if reason := self.transport.unsupported(self.case.buffers, one_sided=self.algorithm.one_sided):
            raise Unmeasured(Status.SKIPPED, reason)
        needed = buffers.nbytes(self.collective, self.spec, self.rank)
        # Uneven exchanges differ between ranks, and all must rotate over equally many buffers.
        largest = int(self.transport.all_gather([float(needed)]).max())
        cold = self.case.cache == "cold"
        count = memory.buffer_pairs(largest, self.transport.device.cache_bytes(), cold=cold)
        if self.case.mode == "graph":
            count = min(count, loop.GRAPH_CALLS)
        if count > memory.MOST_PAIRS:
            raise Unmeasured(
                Status.SKIPPED,
                f"cold pairs of {format_size(largest)} would have to be {count} to get past the cache, "
                f"at most {memory.MOST_PAIRS} are made",
            )
        self.pair_count = count
        return largest

    def _check_memory(self, largest: int) -> None:
        """Ask first: Linux grants memory that it does not have, and kills whoever touches it."""
        # Others find their place in symmetric buffers because those are alike on all ranks.
        symmetric = self.case.buffers == "symmetric"
        each = largest if symmetric else buffers.nbytes(self.collective, self.spec, self.rank)
        needed = each * self.pair_count + self.algorithm.scratch_bytes(self.spec)
        lacking = self.transport.device.missing_memory(needed, self.info.local_size)
        if lacking:
            sys.stderr.write(f"{self.case.label}, {format_size(self.case.size_bytes)}: {lacking}\n")
        if self.transport.all_gather([float(bool(lacking))]).any():
            raise Unmeasured(Status.OUT_OF_MEMORY, lacking or "another rank lacks memory, see its log")

    def _allocate(self) -> list[Pair]:
        pairs: list[Pair] = []
        failure = ""
        one_sided = self.algorithm.one_sided
        try:
            pairs = buffers.allocate(
                self.transport, self.collective, self.spec, self.rank, self.pair_count, one_sided=one_sided
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
            bound = self.algorithm.prepare(comm, self.spec)
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

    def _check_declaration(self, bound: Bound, data: _CheckedData, said: Sent, sent: Sent, salt: int) -> None:
        """Make one untimed call, and hold what it sends against what the algorithm says that it sends."""
        (ready,) = bound.bind(data.pairs[:1])
        if bad := data.call(ready, salt):
            raise self._wrong_result(data, "before timing", salt, bad)
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

    def _checked(self, bound: Bound, data: _CheckedData, untimed: Sequence[int]) -> tuple[loop.Timing, dict[str, Any]]:
        """Time the calls between checks of what they bring; `untimed` numbers the calls before."""
        case, transport = self.case, self.transport
        if case.mode == "graph" and not bound.capturable:
            raise Unmeasured(Status.SKIPPED, f"{case.algorithm} looks at data on the host, which no graph can hold")
        ready = bound.bind(data.pairs)
        for salt in untimed:
            if bad := data.call(ready[0], salt):
                raise self._wrong_result(data, "before timing", salt, bad)
        beside = case.overlap != "none"
        timing = loop.measure(transport, ready, case.policy, mode=case.mode, observer=data, beside=beside)
        assert data.meter is not None
        metered = data.meter.read(len(timing.calls))
        # What the timed calls left in every pair that they used, then one call with fresh data.
        used: list[int] = []
        if self.collective.repeatable(self.spec):
            used = sorted({call % self.pair_count for call in timing.calls[-self.pair_count :]})
        if bad := data.wrong(_TIMED_SALT, used):
            raise self._wrong_result(data, "after timing", _TIMED_SALT, bad)
        if bad := data.call(ready[0], _LAST_SALT):
            raise self._wrong_result(data, "after timing", _LAST_SALT, bad)
        return timing, metered

    def _wrong_result(self, data: _CheckedData, when: str, salt: int, elements: int) -> Unmeasured:
        """Say which rank has which wrong block, and whose data it holds: in the row, and of each rank in its log."""
        texts = {}
        for rank, wrong in data.wrong_outputs.items():
            members = next(list(ranks) for ranks in self.partition if rank in ranks)
            texts[rank] = diagnosis.describe(rank, wrong, salt, members)
        if self.info.rank in texts:
            sys.stderr.write(f"{self.case.label}, {format_size(self.case.size_bytes)}: {texts[self.info.rank]}\n")
        first, *others = sorted(texts)
        also = f"; ranks {', '.join(map(str, others))} have wrong elements too" if others else ""
        return Unmeasured(Status.WRONG_RESULT, f"{when}: {texts[first]}{also}", elements)


@contextlib.contextmanager
def _closing(bound: Bound) -> Iterator[None]:
    """Close after the last call, but not after an error: what is enqueued may wait for ranks that do not come."""
    try:
        yield
    except Unmeasured:
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
    transport, setup, info = on_rank.transport, on_rank.job.setup, on_rank.info
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
        "host_us": float(np.median(timing.host_us.max(axis=1))),
        "skew_us": skew_us if info.local_size == info.size else None,
        "stop_reason": timing.stop_reason,
        "wrong": 0,
        "scratch_bytes": on_rank.algorithm.scratch_bytes(on_rank.spec),
        "buffer_pairs": on_rank.pair_count,
        "links": fabric.links(setup.emulated) if setup.emulated else dict(transport.links()) or None,
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
    append_line(folder.samples_path(job.attempt), json.dumps(line, separators=(",", ":")))


def _rounded(values: Any) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in values.tolist()]
