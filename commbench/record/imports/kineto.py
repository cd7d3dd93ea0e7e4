"""torch.profiler's trace of one rank: collectives, their kernels, and what the GPU had to do besides."""

from __future__ import annotations

import bisect
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from commbench.record.imports import operators
from commbench.record.imports.call import Groups, ImportedCall, ImportedRank, build, collective_of
from commbench.record.imports.operators import Operator
from commbench.record.imports.stream import Item

EVENTS = "traceEvents"
_COMMS = "record_param_comms"
_MOST_US = 1e17  # of clocks since 1970, and of what is no time at all
_STEP = re.compile(r"ProfilerStep\s?#\d+")


class _Span(NamedTuple):
    """The library's own part of a call of gloo, on a thread of its own."""

    number: int  # of the function: those of a call come after the call's
    ends_us: float
    dtype: str


class _Found:
    """What the events of a file are, so far."""

    def __init__(self) -> None:
        self.comms: list[Mapping[str, Any]] = []
        self.operators: list[Mapping[str, Any]] = []
        self.spans: list[_Span] = []
        self.kernels: dict[Any, list[tuple[float, float]]] = defaultdict(list)  # of collectives, by their call
        self.work = array("d")  # of the GPU besides: begins and ends by turns
        self.steps: dict[str, tuple[float, float]] = {}

    def event(self, event: Any) -> None:
        if not isinstance(event, dict) or event.get("ph") != "X":
            return
        name, kind, args = event.get("name"), event.get("cat"), event.get("args") or {}
        began, took = event.get("ts"), event.get("dur", 0)
        if not isinstance(name, str) or not isinstance(args, dict):
            return
        if not isinstance(began, int | float) or not isinstance(took, int | float):
            return
        if not (0 <= began < _MOST_US and 0 <= took < _MOST_US):
            return
        if kind == "kernel":
            if "Collective name" in args or name.startswith(("nccl", "rccl")):
                self.kernels[args.get("External id")].append((began, began + took))
            else:
                self.work.extend((began, began + took))
        elif name == _COMMS:
            self.comms.append(event)
        elif operators.is_call(name):
            self.operators.append(event)
        elif name.startswith("gloo:"):
            types = args.get("Input type") or [""]
            self.spans.append(_Span(args.get("Record function id", 0), began + took, str(types[0])))
        elif kind == "user_annotation" and _STEP.fullmatch(name):
            self.steps[name] = (began, took)


def read(items: Iterable[Item]) -> ImportedRank:
    """Return what a file tells; `calls` are none where it has no communication in it."""
    found, groups = _Found(), Groups()
    about: Mapping[str, Any] = {}
    host, gpu = "", ""
    for item in items:
        if item.listed:
            found.event(item.value)
        elif item.key == "distributedInfo" and isinstance(item.value, dict):
            about = item.value
            groups.declare(about.get("pg_config"))
        elif item.key == "host_name":
            host = str(item.value)
        elif item.key == "deviceProperties" and isinstance(item.value, list) and item.value:
            gpu = str(item.value[0].get("name", "")) if isinstance(item.value[0], dict) else ""
    rank, size = (one if isinstance(one := about.get(key), int) else None for key in ("rank", "world_size"))
    if size and size <= 100_000 and not groups.ranks:
        groups.ranks[""] = tuple(range(size))
    made = ImportedRank(
        kind="torch.profiler", rank=rank, ranks=size, host=host, backend=str(about.get("backend", "")), gpu=gpu
    )
    made.steps = sorted(found.steps.values())
    passed: Counter[str] = Counter()
    calls = _of_comms(found, groups, passed) if found.comms else _of_operators(found, groups, passed)
    made.calls = sorted(calls, key=lambda one: one.began_us)
    made.notes = [f"passed over {count} calls: {why}" for why, count in passed.items()]
    return made


def _of_comms(found: _Found, groups: Groups, passed: Counter[str]) -> list[ImportedCall]:
    calls = []
    busy = _union(found.work)
    for event in found.comms:
        args = event["args"]
        name = args.get("Collective name")
        if not isinstance(name, str) or not collective_of(name):
            continue
        group = str(args.get("Process Group Name", args.get("Process Group ID", "")))
        places = (args.get(key) for key in ("Group size", "Global rank start", "Global rank stride"))
        ranks = groups.of_call(group, args.get("Process Group Ranks"), *places)
        elements = [args.get(key, 0) for key in ("In msg nelems", "Out msg nelems")]
        if ranks is None or not all(isinstance(one, int) and one >= 0 for one in elements):
            passed["the ranks of their group, or what they send, is not in the file"] += 1
            continue
        splits = args.get("In split size", []), args.get("Out split size", [])
        dtype, said = str(args.get("dtype", "")), groups.names.get(group, "")
        call = build(name, dtype, (elements[0], elements[1]), splits, ranks, said)
        if isinstance(call, str):
            passed[call] += 1
            continue
        call.asynchronous = args.get("Is asynchronized op") is True
        call.began_us, call.host_us = event["ts"], event.get("dur", 0)
        if kernels := found.kernels.get(args.get("External id")):
            call.device_us = sum(end - begin for begin, end in kernels)
            call.wait_us = sum(end - begin - _covered(busy, begin, end) for begin, end in kernels)
        calls.append(call)
    return calls


def _of_operators(found: _Found, groups: Groups, passed: Counter[str]) -> list[ImportedCall]:
    calls = []
    spans = sorted(found.spans)
    numbers = sorted(one["args"].get("Record function id", 0) for one in found.operators)
    for event in found.operators:
        args = event["args"]
        number = args.get("Record function id", 0)
        span = _inner(spans, number, numbers)
        operator = Operator(
            event["name"],
            args.get("Input Dims") or (),
            args.get("Input type") or (),
            [_listed(value) for value in args.get("Concrete Inputs") or ()],
        )
        call = operators.read(operator, groups, span.dtype if span else "")
        if isinstance(call, str):
            passed[call] += 1
            continue
        call.began_us, call.host_us = event["ts"], event.get("dur", 0)
        if span and not call.asynchronous:
            call.wait_us = max(0.0, span.ends_us - call.began_us - call.host_us)
        calls.append(call)
    return calls


def _inner(spans: list[_Span], number: int, numbers: list[int]) -> _Span | None:
    """Return the first span that began after one operator and before the next."""
    place = bisect.bisect_right(numbers, number)
    end = numbers[place] if place < len(numbers) else float("inf")
    at = bisect.bisect_left(spans, number, key=lambda one: one.number)
    return spans[at] if at < len(spans) and spans[at].number < end else None


def _listed(value: Any) -> Any:
    """Return a list where its text is one."""
    if isinstance(value, str) and re.fullmatch(r"\[[\d\s,]*\]", value):
        return [int(part) for part in re.findall(r"\d+", value)]
    return value


class _Busy(NamedTuple):
    """Times without overlap in which the GPU computed, and how long that was until each began."""

    begins: list[float]
    ends: list[float]
    before: list[float]


def _union(spans: array[float]) -> _Busy:
    begins: list[float] = []
    ends: list[float] = []
    for begin, end in sorted(zip(spans[::2], spans[1::2], strict=True)):
        if ends and begin <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            begins.append(begin)
            ends.append(end)
    before = [0.0]
    for begin, end in zip(begins, ends, strict=True):
        before.append(before[-1] + end - begin)
    return _Busy(begins, ends, before)


def _covered(busy: _Busy, begin: float, end: float) -> float:
    """Return how long the GPU computed from `begin` to `end`."""
    return _until(busy, end) - _until(busy, begin)


def _until(busy: _Busy, when: float) -> float:
    place = bisect.bisect_right(busy.begins, when)
    if not place:
        return 0.0
    return busy.before[place - 1] + min(when, busy.ends[place - 1]) - busy.begins[place - 1]
