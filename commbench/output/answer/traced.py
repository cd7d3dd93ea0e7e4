"""The answer of `commbench record`: what a faster exchange could save of a program's step, at the most."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from commbench import algorithms
from commbench.output.answer.claims import Answer
from commbench.record.describe import duration, percent
from commbench.record.exchanges import TracedExchange
from commbench.record.trace import ProgramTrace

_MUCH = 0.05  # of what is waited: so much for late ranks is said


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWaits:
    """What a program waits for exchanges that can be done in several ways, in microseconds of a step.

    late_us: of tunable_us, for ranks that come later than others. waits_seen: whether all waits could be seen.
    """

    tunable_us: float
    late_us: float
    waits_seen: bool
    step_us: float | None


def can_be_tuned(collective: str) -> bool:
    """Return whether there is more than one way to do a collective that programs call."""
    return len(algorithms.names(collective)) > 1


def waits(trace: ProgramTrace, found: Sequence[TracedExchange]) -> StepWaits:
    """Return how long the program waits for what a tuning could make faster; of a trace without steps, in all."""
    mine = [one for one in found if can_be_tuned(one.collective)]
    waited = sum(one.exposed_us or 0.0 for one in mine)
    late = min(waited, sum(one.late_us or 0.0 for one in mine))
    step = trace.step_us()
    return StepWaits(
        tunable_us=round(waited, 3), late_us=round(late, 3), step_us=step and round(step, 3),
        waits_seen=all(one.exposed_us is not None for one in mine),
    )  # fmt: skip


def sentences(trace: ProgramTrace, found: Sequence[TracedExchange]) -> list[str]:
    """Return what a trace shows: the first one is the title of its picture."""
    of = waits(trace, found)
    if not _tunable(found):
        return ["nothing of this can be tuned: the program calls no all-to-all, and all else has one way to be done"]
    if not of.waits_seen:
        return ["how long the program waits for its all-to-alls could not be seen"]
    if of.step_us is None:
        waited = f"the program waits {duration(of.tunable_us)} in all for its all-to-alls"
        return [waited, "it has no steps that could be counted"]
    saved = of.tunable_us - of.late_us
    said = [
        f"a faster all-to-all can save {duration(saved)} of a step of {duration(of.step_us)} at the most "
        f"({percent(saved, of.step_us)})"
    ]
    if of.late_us > _MUCH * of.tunable_us:
        said.append(f"{duration(of.late_us)} more is waited for ranks that come later, which no exchange can save")
    return said


def answer(trace: ProgramTrace, found: Sequence[TracedExchange], folder: Path) -> Answer:
    """Return what a faster exchange could save, and the tuning that finds one. folder: of the trace."""
    said = sentences(trace, found)
    if not _tunable(found):
        return Answer(sentences=said, step="keep the program as it is")
    tune = f"commbench tune {shlex.quote(str(folder))} budget=10m --out p.json"
    return Answer(sentences=said, step="find what is faster for what it sends", command=tune)


def _tunable(found: Sequence[TracedExchange]) -> bool:
    return any(can_be_tuned(one.collective) for one in found)
