"""What `commbench train ab` says of its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from commbench.ab.pairs import ARMS
from commbench.output.answer.words import count
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.train import results
from commbench.train.ab import Outcome
from commbench.train.ab_expected import ExpectedRatio

_SAME = 1e-12  # relative: losses that differ by no more are called identical
_CHANCE = 10.0  # times as far apart as launches of one arm: more than chance
_ROUNDING = 1e-5  # and more than that in any case, which another order of sums may do to the loss of a first step


def names(settings: Sequence[Mapping[str, Any]]) -> str:
    """Both arms, by the keys in which they differ."""
    return ", ".join(results.differences(settings, " against "))


def table(outcome: Outcome, expected: ExpectedRatio | None) -> list[str]:
    """For people."""
    interval = "no interval" if outcome.low is None else f"{outcome.low:.3f} - {outcome.high:.3f}"
    lines = [f"{'arm':<10}{'tokens/s':>12}{'waits for communication':>26}"]
    for arm in ARMS:
        lines.append(f"{arm:<10}{outcome.tokens_per_s[arm]:>12.0f}{100 * outcome.exposed[arm]:>24.1f} %")
    pairs = count(outcome.pairs, "pair")
    lines.append(f"# throughput: {outcome.ratio:.3f}x ({interval}, {pairs} of launches): {outcome.verdict}")
    if not outcome.claim:
        lines.append(f"# a claim of a gain takes {PAIRS_FOR_CLAIM} pairs: rounds={PAIRS_FOR_CLAIM}")
    if expected is not None:
        lines.append(f"# predicted before: {expected}; measured / predicted {outcome.ratio / expected.value:.3f}")
        if expected.bias is not None and expected.corrected is not None:
            low, high = expected.corrected
            lines.append(f"# of such A/Bs on record {expected.bias}: so {low:.3f} - {high:.3f}x; {expected.bias.why}")
    lines.append("# of median steps after the first fifth; waits: the rank that waits longest")
    return [*lines, f"# losses {_losses(outcome)}"]


def _losses(outcome: Outcome) -> str:
    if outcome.losses == 0:
        return "of both arms are identical at every step"
    text = f"of the arms differ by {outcome.losses:.1e} at most, at the first step by {outcome.first:.1e}; "
    if outcome.apart > _SAME:  # on GPUs sums have no fixed order, and a training makes little differences large
        text += f"launches of one arm by {outcome.apart:.1e} and {outcome.first_apart:.1e}"
        if outcome.first > max(_CHANCE * outcome.first_apart, _ROUNDING):
            text += ": at the first step more than chance is, so a mistake, unless the arms compute in other precision"
        return text
    if outcome.losses <= _SAME:
        return text + "that is rounding"
    return text + "launches of one arm are identical: sums in another order, or a mistake"
