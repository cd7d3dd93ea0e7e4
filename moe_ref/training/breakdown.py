"""Where the time of a step goes, part by part, from the events of torch.profiler.

An operation belongs to the innermost range around it that the table below knows. What runs backward belongs to the
part of the operation whose gradient it computes: autograd gives both the same sequence number. Only a range inside of
backward (a collective, a block that is computed again) counts for more.

On a CPU each moment of the thread that makes the step is one part's. On a GPU a part has the time in which kernels and
copies run that were launched under it, and `idle` is what is left of the step when nothing runs.
"""

from __future__ import annotations

import functools
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile, schedule

from commbench.run_folder import append_record
from commbench.train.results import BREAKDOWN
from moe_ref.profiling import labelled
from moe_ref.training.metrics import Metrics
from moe_ref.training.trainer import Trainer

WARM_STEPS = 3  # of a start, before the first step that is looked at
STEP, _READ = "train::step", "train::read"
OTHER, IDLE = "other", "idle"
# Of a range's name by how it begins, the first that fits.
_TABLE = (
    ("lm::attention", "attention"),
    ("lm::ffn", "ffn"),
    ("moe::gate", "gate"),
    ("moe::dispatch", "dispatch"),
    ("comm::all_to_all", "a2a"),
    ("comm::tp_all_to_all", "a2a"),
    ("moe::experts", "experts"),
    ("moe::combine", "combine"),
    ("comm::", "communication"),
    ("train::gradients", "gradients"),
    ("train::optimizer", "optimiser"),  # as files have it
    ("lm::", OTHER),
    ("train::", OTHER),
)
PARTS = (*dict.fromkeys(part for _, part in _TABLE), IDLE)
_WHOLE = ("gradients", "optimiser")  # with the collectives in them
_NODE = "autograd::engine::evaluate_function"
_HOST = 0  # torch.autograd.DeviceType.CPU
_LAUNCHES = ("cu", "hip")  # how calls of the GPU's runtime and driver begin
Span = tuple[int, int]


class Event(NamedTuple):  # there are a hundred thousand of them
    """An event that a profiler saw on the host, in nanoseconds. kernels: what this very event has launched, copies too.

    sequence: of autograd, the same for an operation and its backward; -1: none. fwd_thread: of a backward, the thread
    of the operation; 0: it is none.
    """

    name: str
    thread: int
    start: int
    end: int
    sequence: int = -1
    fwd_thread: int = 0
    kernels: tuple[Span, ...] = ()


def parts(events: Iterable[Event], device: str) -> list[dict[str, Any]]:
    """Return `device`, `step_us` and `parts`, microseconds by part, of each range `STEP` in the order of time.

    device: "cpu", or "cuda" for times of kernels.
    """
    ordered = sorted(events, key=lambda event: (event.start, -event.end))
    lines = _lines(ordered)
    reads = [event.end for event in ordered if event.name == _READ]
    found = []
    for step in (event for event in ordered if event.name == STEP):
        # Ranks tell each other their times after that, which is no part of the step.
        end = next((read for read in reads if step.start < read <= step.end), step.end)
        took = (
            _on_gpu(ordered, lines, step.start, end) if device == "cuda" else lines[step.thread].spent(step.start, end)
        )
        found.append({
            "device": device,
            "step_us": (end - step.start) / 1e3,
            "parts": {part: took.get(part, 0) / 1e3 for part in PARTS},
        })  # fmt: skip
    return found


class _Line:
    """A thread's parts in the order of time: on which it works, and since when."""

    def __init__(self) -> None:
        self.part = OTHER
        self.node = OTHER  # of the last backward
        self._since, self._parts = [0], [OTHER]
        self._open: list[tuple[int, str]] = []  # ends of ranges, and the part to which they return

    def enter(self, event: Event, part: str) -> None:
        end = min([event.end, *(last for last, _ in self._open[-1:])])
        self._open.append((end, self.part))
        self._turn(event.start, self.part if self.part in _WHOLE else part)

    def leave(self, now: int) -> None:
        """End all ranges that are over."""
        while self._open and self._open[-1][0] <= now:
            self._turn(*self._open.pop())

    def _turn(self, when: int, part: str) -> None:
        self.part = part
        self._since.append(when)
        self._parts.append(part)

    def at(self, when: int) -> str:
        return self._parts[bisect_right(self._since, when) - 1]

    def spent(self, start: int, end: int) -> dict[str, int]:
        took: dict[str, int] = defaultdict(int)
        at = bisect_right(self._since, start) - 1
        while start < end:
            until = min(end, self._since[at + 1]) if at + 1 < len(self._since) else end
            took[self._parts[at]] += until - start
            start, at = until, at + 1
        return took


def _lines(ordered: Iterable[Event]) -> dict[int, _Line]:
    """Make the lines by thread, from events in the order of time."""
    lines: dict[int, _Line] = defaultdict(_Line)
    made: dict[tuple[int, int], str] = {}  # the part in which an operation was made, by thread and sequence number
    for event in ordered:
        line = lines[event.thread]
        line.leave(event.start)
        if (part := _part(event.name)) is not None:
            line.enter(event, part)
        elif event.fwd_thread > 0 or event.name.startswith(_NODE):
            # A gradient that is added to a parameter's has no number; it comes right after the one that made it.
            line.node = made.get((event.fwd_thread, event.sequence), line.part) if event.fwd_thread > 0 else line.node
            line.enter(event, line.node)
        elif event.sequence >= 0:
            # Several may show the next number that autograd will give: the last of them has got it.
            made[event.thread, event.sequence] = line.part
    for line in lines.values():
        line.leave(2**63)
    return lines


@functools.cache
def _part(name: str) -> str | None:
    return next((part for prefix, part in _TABLE if name.startswith(prefix)), None)


def _on_gpu(ordered: Iterable[Event], lines: dict[int, _Line], start: int, end: int) -> dict[str, int]:
    spans: dict[str, list[Span]] = defaultdict(list)
    for event in ordered:
        if event.kernels and start <= event.start < end:
            part = lines[event.thread].at(event.start) if event.thread in lines else OTHER
            spans[part] += [(max(first, start), min(last, end)) for first, last in event.kernels]
    took = {part: _length(of_part) for part, of_part in spans.items()}
    return {**took, IDLE: end - start - _length([span for of_part in spans.values() for span in of_part])}


def _length(spans: list[Span]) -> int:
    """Return the length of their union."""
    total, reached = 0, -1
    for start, end in sorted(spans):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return total


def events_of(found: Sequence[Any]) -> list[Event]:
    """Make events of the profiler's own records. What it cannot tie to a launch is nobody's, on a thread of its own."""
    host: list[Any] = []
    device: list[Any] = []
    for one in found:
        (host if int(one.device_type()) == _HOST else device).append(one)
    # Ranges are shown on the GPU's time line too, under the same name.
    ranges = {one.name() for one in host if one.is_user_annotation()}
    kernels: dict[int, list[Span]] = defaultdict(list)
    linked: dict[int, int] = {}
    for one in device:
        if not one.is_user_annotation() and one.name() not in ranges:
            kernels[one.correlation_id()].append((one.start_ns(), one.start_ns() + one.duration_ns()))
            linked[one.correlation_id()] = one.linked_correlation_id()
    calls: list[Any] = []
    operations: list[Any] = []
    for one in host:
        called = kernels and one.name().startswith(_LAUNCHES) and not one.is_user_annotation()
        (calls if called else operations).append(one)
    threads = {one.correlation_id(): one.start_thread_id() for one in operations}
    # Calls may know the system's number of their thread, where operations know the profiler's.
    known = {one.start_thread_id(): threads[one.linked_correlation_id()]
             for one in calls if one.linked_correlation_id() in threads}  # fmt: skip
    made = []
    for one in calls:
        if its := tuple(kernels.pop(one.correlation_id(), ())):
            thread = known.get(one.start_thread_id(), one.start_thread_id())
            made.append(Event(one.name(), thread, one.start_ns(), one.end_ns(), kernels=its))
    rest: dict[int, tuple[Span, ...]] = defaultdict(tuple)
    for number, spans in kernels.items():
        if linked[number] in threads:
            rest[linked[number]] += tuple(spans)
        else:
            made += [Event("", -1, start, end, kernels=((start, end),)) for start, end in spans]
    for one in operations:
        made.append(Event(one.name(), one.start_thread_id(), one.start_ns(), one.end_ns(), one.sequence_nr(),
                          one.fwd_thread_id(), rest.get(one.correlation_id(), ())))  # fmt: skip
    return made


class Recorder:
    """Makes steps of a trainer, of which rank 0 profiles some: the first `config.breakdown_steps` after `WARM_STEPS`.

    They are made without graphs, whose kernels nobody can tell apart. The step before them may be slower too, as the
    profiler gets ready. A training must not end because of it: where the profiler fails there is no breakdown, and
    `note` says why.
    """

    def __init__(
        self, trainer: Trainer, folder: Path, *, barrier: Callable[[], object], note: Callable[[str], object]
    ) -> None:
        """folder: of the run. barrier: all ranks wait for each other, lest what rank 0 does between steps looks like a
        slow exchange of the next one.
        """
        self._trainer, self._file, self._barrier, self._note = trainer, folder / BREAKDOWN, barrier, note
        self._first = trainer.done + WARM_STEPS + 1
        self._last = self._first + trainer.config.breakdown_steps - 1
        if self._last < self._first or self._last > trainer.config.steps:
            self._first = self._last = 0
        self._profile: Any = None  # typed in part

    def step(self, *, stop: bool = False) -> tuple[Metrics, bool]:
        """Make one step, by `Trainer.step`. Collective."""
        number = self._trainer.done + 1
        if self._first and number in (self._first - 1, self._first):
            self._do(self._start if number < self._first else self._begin)
        profiled = self._first - 1 <= number <= self._last
        with labelled(STEP):
            metrics, stopped = self._trainer.step(stop=stop, eager=profiled)
        metrics.profiled = profiled
        if self._first and (number == self._last or (stopped and profiled)):
            self._do(self._end)
        return metrics, stopped

    def _do(self, what: Callable[[], None]) -> None:
        if self._trainer.rank == 0:
            try:
                what()
            except Exception as error:  # of CUPTI, of kineto, of a full disk: all the same to the training
                self._profile = None
                self._note(f"no step breakdown: {type(error).__name__}: {error}")
        self._barrier()

    def _start(self) -> None:
        gpu = [ProfilerActivity.CUDA] if self._trainer.device.type == "cuda" else []
        steps = schedule(wait=0, warmup=1, active=self._last - self._first + 1, repeat=1)
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu], schedule=steps)
        self._profile.start()

    def _begin(self) -> None:
        if self._profile is not None:
            self._profile.step()

    def _end(self) -> None:
        if self._profile is None:
            return
        running, self._profile = self._profile, None
        running.stop()
        device = self._trainer.device.type
        events = events_of(running.profiler.kineto_results.events())
        lines = parts(events, device)
        if lines and device == "cuda" and not any(event.kernels for event in events):
            self._note("no step breakdown: torch.profiler has seen no kernel; may this user read the GPU's counters?")
            return
        start = self._first - WARM_STEPS  # the first step of this start
        for number, line in enumerate(lines, self._first):
            append_record(self._file, json.dumps({"step": number, "rank": 0, "start": start, **line}), durable=False)
