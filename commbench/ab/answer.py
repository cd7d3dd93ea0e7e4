"""The answer of an A/B in words: one sentence, and a table under it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from commbench.ab.pairs import ARMS, BASELINE, CANDIDATE, LOOKED_AT, Paired, Resolution
from commbench.ab.turns import Stop
from commbench.output.answer.arms import next_step
from commbench.output.answer.words import count
from commbench.output.grid import AS_FITS, Column, folded, grid, number
from commbench.stats import LAUNCHES_FOR_INTERVAL, Ratio, Verdict


def interval(ratio: Ratio) -> str:
    """`1.180x (1.150 - 1.210)`."""
    ends = "no interval" if ratio.low is None else f"{ratio.low:.3f} - {ratio.high:.3f}"
    return f"{ratio.value:.3f}x ({ends})"


def sentence(paired: Paired | None, failed: Mapping[str, str], *, what: str, resolve: float, timed: bool) -> str:
    """Return the answer. failed: why an arm has none; what: is compared; timed: whether that is a time."""
    if failed:
        others = [arm for arm in ARMS if arm not in failed]
        text = "; ".join(f"the {arm} fails: {why}" for arm, why in failed.items())
        return text[:1].upper() + text[1:] + (f". The {others[0]} does not." if others else ".")
    if paired is None:
        return "There is no answer: no round of launches has both arms."
    rounds = count(paired.rounds, "round")
    resolution = str(paired.resolution(resolve))
    also = f"; {resolution}" if resolution else ""
    if not paired.controlled:
        assert paired.control is not None
        return (f"There is no answer: launches of the same arm differ by {interval(paired.control)} as if they were "
                "two, so something else changes the time by turns.")  # fmt: skip
    match paired.verdict:
        case Verdict.FASTER | Verdict.SLOWER as verdict:
            words = ("faster", "slower") if timed else ("better", "worse")
            better = words[verdict is Verdict.SLOWER]
            return f"The candidate is {better}: {interval(paired.ratio)} in {what}, over {rounds}."
        case Verdict.NO_DIFFERENCE:
            return f"No difference was found in {what}: {interval(paired.ratio)} over {rounds}{also}."
    return (f"There is no verdict: {interval(paired.ratio)} in {what} over {rounds}, and "
            f"{LAUNCHES_FOR_INTERVAL} are needed.")  # fmt: skip


def facts(
    paired: Paired | None, failed: Mapping[str, str], *, what: str, resolve: float, timed: bool
) -> dict[str, Any]:
    """Return the answer as `ab.json` has it. Null is what nobody knows."""
    about: dict[str, Any] = {
        "ratio": None, "low": None, "high": None, "rounds": 0, "verdict": str(Verdict.NOT_ESTIMABLE),
        "level": None, "noise": None, "control": None, "resolves": None, "more_rounds": None, "resolve": resolve,
    }  # fmt: skip
    if paired is not None:
        resolution = paired.resolution(resolve)
        about |= {
            "ratio": paired.ratio.value, "low": paired.ratio.low, "high": paired.ratio.high,
            "rounds": paired.rounds, "verdict": str(Verdict.NOT_ESTIMABLE if failed else paired.verdict),
            "level": paired.level, "noise": paired.noise, "control": _ratio(paired.control),
            "resolves": resolution.found, "more_rounds": resolution.more,
        }  # fmt: skip
    answer = sentence(paired, failed, what=what, resolve=resolve, timed=timed)
    step = next_step(
        Verdict(about["verdict"]), rounds=about["rounds"], more_rounds=about["more_rounds"],
        controlled=paired is None or paired.controlled, failed=failed,
    )  # fmt: skip
    return {**about, "answer": answer, "next": step, "failed": dict(failed)}


def _ratio(ratio: Ratio | None) -> dict[str, float | None] | None:
    return None if ratio is None else {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}


class _Arm(NamedTuple):
    name: str
    values: list[float]  # of its launches


def columns() -> list[Column[_Arm]]:
    def of(name: str, statistic: Callable[[list[float]], float]) -> Column[_Arm]:
        return Column(name=name, text=lambda row: number(float(statistic(row.values))) if row.values else "-")

    return [
        Column(name="arm", text=lambda row: row.name, left=True),
        Column(name="launches", text=lambda row: str(len(row.values))),
        of("median", lambda values: float(np.median(values))),
        of("least", min),
        of("most", max),
    ]


def table(
    about: Mapping[str, Any], values: Mapping[str, Sequence[float]], names: Mapping[str, str], what: str
) -> list[str]:
    """Return lines for people. about: the facts; values: of each arm's launches; names: what each arm is."""
    lines = [about["answer"], ""]
    laid = grid(columns(), [_Arm(arm, list(values[arm])) for arm in ARMS], AS_FITS)
    lines += [*(f"# {note}" for note in laid.notes), *laid.lines]
    lines += itertools.chain(*(folded(f"{arm}: {names[arm]}") for arm in ARMS))
    lines += folded(f"median, least, most: {what}; ratio: {BASELINE} over {CANDIDATE} in cost, above 1 the {CANDIDATE} "
                    "is better")  # fmt: skip
    if about["level"] is not None and about["low"] is not None:
        looks = "looked at after every round, " if about["level"] == LOOKED_AT else ""
        lines += folded(f"interval: {looks}misses the ratio in {4 if looks else 5} % of comparisons at the most")
    if about["resolves"] is not None:
        lines.append(f"# {Resolution(about['resolves'], about['resolve'], about['more_rounds'])}")
    if (control := about["control"]) is not None:
        ends = "" if control["low"] is None else f" ({control['low']:.3f} - {control['high']:.3f})"
        lines.append(f"# control, one arm against itself: {control['ratio']:.3f}x{ends}")
    lines.append(f"# stopped: {_STOPPED[about['stopped']]}") if about.get("stopped") else None
    return lines


_STOPPED = {
    Stop.RESOLVED: "the answer is known",
    Stop.ROUNDS: "all rounds are made",
    Stop.BUDGET: "the budget is spent",
    Stop.FAILED: "an arm fails",
}
