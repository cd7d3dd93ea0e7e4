"""A trace in words: a sentence for each exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from commbench.record.exchanges import TracedExchange
from commbench.record.trace import IMPORTED, ProgramTrace
from commbench.units import format_seconds, format_size

_MOST_LINES = 20
_WORDS = {"all_to_all": "all-to-all", "all_to_allv": "uneven all-to-all", "all_gather": "all-gather",
          "reduce_scatter": "reduce-scatter", "all_reduce": "all-reduce"}  # fmt: skip
_EVEN = 1.05  # a skew below is none


def table(trace: ProgramTrace, found: Sequence[TracedExchange]) -> list[str]:
    """Return what was sent, for people: what the program waits for most comes first."""
    nodes, per_node = trace.layout()
    where = f"{trace.ranks} ranks on {nodes} x {per_node}" if nodes > 1 else f"{trace.ranks} ranks"
    step = trace.step_us()
    counted = max((trace.step_count(rank) for rank in range(trace.ranks)), default=0)
    head = f"# {where}, {trace.transport}"
    if step is not None:
        if IMPORTED in trace.versions:  # a profiler begins later than the program: its first step counts
            head += f", {counted - 1} step{'s' if counted > 2 else ''} of {duration(step)}"
        else:
            head += f", {counted} steps of {duration(step)}; the first, and what was before, is not counted"
    else:
        head += ", the whole run"
        if IMPORTED not in trace.versions:
            head += ": no optimizer stepped twice, and nobody called commbench.step()"
    lines = [head, *(f"# {text}" for text in notes(trace))]
    lines += [sentence(one, step, imported=IMPORTED in trace.versions) for one in found[:_MOST_LINES]]
    if len(found) > _MOST_LINES:
        lines.append(f"and {len(found) - _MOST_LINES} more, in calls.parquet")
    return lines


def notes(trace: ProgramTrace) -> list[str]:
    """Return what a reader of the trace has to know."""
    said = []
    if trace.missing:
        some = ", ".join(map(str, trace.missing[:8])) + (", .." if len(trace.missing) > 8 else "")
        said.append(f"nothing was recorded of rank {some}: all hosts have to see the folder")
    if trace.status != "finished":
        said.append("the program did not end well: this is what ranks had written until then")
    merged = sum(one.count for one in trace.calls if one.merged)
    if merged:
        total = sum(one.count for one in trace.calls)
        said.append(f"{percent(merged, total)} of the calls have sizes or splits of their own, and are merged by size")
    return said


def sentence(one: TracedExchange, step_us: float | None, *, imported: bool = False) -> str:
    """Return one exchange: `96 all-to-alls of 24 MiB a step over 8 ranks: 31 % of the step, 12 % exposed; a.py:2`."""
    name = _WORDS.get(one.collective, one.collective.replace("_", " "))
    number = f"{one.calls:.2g}" if one.calls < 10 else f"{one.calls:.0f}"
    many = number != "1"
    size = format_size(one.nbytes)
    if one.most_bytes > 1.1 * one.least_bytes:
        size = f"{format_size(one.least_bytes)} to {format_size(one.most_bytes)} (mean {size})"
    per = " a step" if step_us is not None else ""
    groups = f" in {one.groups} groups" if one.groups > 1 else ""
    text = f"{number} {name}{'s' if many else ''} of {size}{per} over {one.ranks} ranks{groups}"
    parts = [_cost(one, step_us) or ("" if imported else "nobody could see how long: torch itself waits for it")]
    parts += [f"skew {one.skew:.2g}"] if one.skew is not None and one.skew >= _EVEN else []
    parts += [one.site or ("" if imported else "the backward pass, or a thread of torch")]
    return ": ".join([text, *(["; ".join(said)] if (said := [part for part in parts if part]) else [])])


def _cost(one: TracedExchange, step_us: float | None) -> str:
    """Return what an exchange takes of a step, and what of that the program waits for."""
    said = []
    if one.time_us is not None:
        said.append(duration(one.time_us) if step_us is None else f"{percent(one.time_us, step_us)} of the step")
    if one.exposed_us is not None:
        share = duration(one.exposed_us) if step_us is None else percent(one.exposed_us, step_us)
        late = (one.late_us or 0.0) / one.exposed_us if one.exposed_us else 0.0
        said.append(f"{share} exposed")
        said += [f"{100 * late:.0f} % of that for ranks that come later"] if late > 0.05 else []
    return ", ".join(said)


def rows(found: Sequence[TracedExchange]) -> list[dict[str, Any]]:
    """Return the exchanges as `--format json` prints them, one object each."""
    return [{key: _short(value) for key, value in asdict(one).items()} for one in found]


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def percent(part: float, whole: float) -> str:
    """Return `12 %`, with one digit where it is below 1 %."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 1 or share == 0 else f"{share:.1g} %"


def duration(us: float) -> str:
    """Return `812 us`, `1.21 ms`, `2 min 3 s`."""
    if us >= 1e7:
        return format_seconds(us / 1e6)
    for unit, name in ((1e6, "s"), (1e3, "ms")):
        if us >= unit:
            return f"{us / unit:.3g} {name}"
    return f"{us:.3g} us"
