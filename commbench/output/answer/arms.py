"""The next step after two arms were compared: what `commbench ab` and `commbench train ab` say last."""

from __future__ import annotations

from collections.abc import Collection

from commbench.stats import LAUNCHES_FOR_INTERVAL, PAIRS_FOR_CLAIM, Verdict


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
