"""Two arms that were compared by `commbench ab` or `commbench train ab`: the title of their picture, the next step."""

from __future__ import annotations

from collections.abc import Collection

from commbench.output.answer import words
from commbench.stats import LAUNCHES_FOR_INTERVAL, PAIRS_FOR_CLAIM, Verdict


def title(
    verdict: Verdict, ratio: float, low: float | None, high: float | None, *, rounds: int, what: str,
    failed: Collection[str] = (),
) -> str:  # fmt: skip
    """Return what was found as the title of a picture: `Candidate better: 1.15x [1.14-1.16] in throughput`.

    what: was compared; a ratio above 1 is better for the candidate. failed: arms without an answer.
    """
    if failed:
        return f"No answer: the {' and the '.join(sorted(failed))} failed"
    measured = f"{words.ratio(ratio, low, high)} in {what}"
    match verdict:
        case Verdict.FASTER:
            return f"Candidate better: {measured}"
        case Verdict.SLOWER:
            return f"Candidate worse: {measured}"
        case Verdict.NO_DIFFERENCE:
            return f"No difference is proven: candidate {measured}"
    if rounds >= LAUNCHES_FOR_INTERVAL:  # the control says so
        return f"No answer: launches of one arm differ as if they were two; candidate {measured}"
    few = f"{words.count(rounds, 'round')}, {LAUNCHES_FOR_INTERVAL} are needed"
    return f"Nothing is proven: {few}; candidate {measured}"


def next_step(
    verdict: Verdict, *, rounds: int, more_rounds: int | None, controlled: bool, failed: Collection[str]
) -> str:
    """Return what to do now. more_rounds: that the wanted resolution still takes; failed: arms without an answer."""
    if failed:
        return f"read the log of the {' and of the '.join(sorted(failed))}, repair it, compare again"
    if not controlled:
        return "find what changes by turns (commbench doctor), then compare again"
    if rounds < LAUNCHES_FOR_INTERVAL:
        return f"compare again with rounds={PAIRS_FOR_CLAIM}"
    if verdict is Verdict.FASTER:
        return "take the candidate" if rounds >= PAIRS_FOR_CLAIM else f"confirm it with rounds={PAIRS_FOR_CLAIM}"
    if verdict is Verdict.SLOWER:
        return "keep the baseline"
    if more_rounds:
        return f"keep the baseline, or look for less with rounds={rounds + more_rounds}"
    return "keep the baseline: nothing is to be gained"
