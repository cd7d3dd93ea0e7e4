"""The answer of `commbench record`: what a faster exchange could save of a program's step, at the most."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from commbench.output.answer.claims import Answer
from commbench.record.describe import duration, percent
from commbench.record.exchanges import TracedExchange
from commbench.record.trace import ProgramTrace
from commbench.record.ways import is_sum

_MUCH = 0.05  # of what is waited: so much for late ranks is said


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWaits:
    """What a program waits for exchanges that can be done in several ways, in microseconds of a step.

    late_us: of tunable_us, for ranks that come later than others. sums_us: what it waits for sums besides, which go by
    a profile where that is asked for alone. waits_seen: whether all waits could be seen.
    """

    tunable_us: float
    late_us: float
    waits_seen: bool
    step_us: float | None
    sums_us: float = 0.0


def waits(trace: ProgramTrace, found: Sequence[TracedExchange]) -> StepWaits:
    """Return how long the program waits for what a tuning could make faster; of a trace without steps, in all."""
    mine = _tunable(found)
    waited = sum(one.exposed_us or 0.0 for one in mine)
    late = min(waited, sum(one.late_us or 0.0 for one in mine))
    step = trace.step_us()
    return StepWaits(
        tunable_us=round(waited, 3), late_us=round(late, 3), step_us=step and round(step, 3),
        sums_us=round(sum((one.exposed_us or 0.0) - (one.late_us or 0.0) for one in _sums(found)), 3),
        waits_seen=all(one.exposed_us is not None for one in mine),
    )  # fmt: skip


def sentences(trace: ProgramTrace, found: Sequence[TracedExchange]) -> list[str]:
    """Return what a trace shows: the first one is the title of its picture."""
    of = waits(trace, found)
    sums = _of_sums(of) if _sums(found) else []
    mine = _tunable(found)
    if not mine:
        if sums:
            return ["the program calls no all-to-all, and all else than sums has one way to be done", *sums]
        return ["nothing of this can be tuned: the program calls no all-to-all, and all else has one way to be done"]
    even = all(one.collective.startswith("all_to_all") for one in mine)
    what = "all-to-all" if even else "exchange"
    if not of.waits_seen:
        return [f"how long the program waits for its {what}s could not be seen"]
    if of.step_us is None:
        waited = f"the program waits {duration(of.tunable_us)} in all for its {what}s"
        return [waited, "it has no steps that could be counted", *sums]
    saved = of.tunable_us - of.late_us
    said = [
        f"a faster {what} can save {duration(saved)} of a step of {duration(of.step_us)} at the most "
        f"({percent(saved, of.step_us)})"
    ]
    if of.late_us > _MUCH * of.tunable_us:
        said.append(f"{duration(of.late_us)} more is waited for ranks that come later, which no exchange can save")
    return said + sums


def _of_sums(of: StepWaits) -> list[str]:
    if of.sums_us <= 0:
        return []
    share = f" ({percent(of.sums_us, of.step_us)} of a step)" if of.step_us else ""
    return [
        f"{duration(of.sums_us)}{share} is waited for sums: reductions=true tunes them, too, and adds in another order"
    ]


def answer(trace: ProgramTrace, found: Sequence[TracedExchange], folder: Path) -> Answer:
    """Return what a faster exchange could save, and the tuning that finds one. folder: of the trace."""
    said = sentences(trace, found)
    if not _tunable(found) and not _sums(found):
        return Answer(sentences=said, step="keep the program as it is")
    sums = "" if _tunable(found) else " reductions=true"
    tune = f"commbench tune {shlex.quote(str(folder))}{sums} budget=10m --out p.json"
    return Answer(sentences=said, step="find what is faster for what it sends", command=tune)


def _tunable(found: Sequence[TracedExchange]) -> list[TracedExchange]:
    """Return what goes by a profile unasked, and has several ways to be done."""
    return [one for one in found if one.tunable and not is_sum(one.collective)]


def _sums(found: Sequence[TracedExchange]) -> list[TracedExchange]:
    return [one for one in found if one.tunable and is_sum(one.collective)]
