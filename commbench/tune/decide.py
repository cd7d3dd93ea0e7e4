"""What is chosen for one problem, with its evidence, once its contests are over."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from commbench.profile import Evidence
from commbench.stats import Verdict
from commbench.tune import ProcessGroup
from commbench.tune.choices import Decision
from commbench.tune.claims import Claim
from commbench.tune.confirmation import BEST, PLAIN, Arms, ConfirmedTimes, Confirming
from commbench.tune.space import label
from commbench.tune.starts import describe_start


def decide(arms: Arms, index: int, confirming: Confirming, times: ConfirmedTimes, control: Claim) -> Decision:
    """Choose for the problem of `arms`, which is number `index`. `control`: its default against itself."""
    default, started = arms.problem.default, confirming.started
    challengers, contests = arms.challengers[started.key], confirming.contests(index)
    confirmed = [name for name in (BEST, PLAIN) if name in contests and contests[name].confirmed]
    chosen = challengers[confirmed[0]] if confirmed else default
    plain = None
    if chosen.buffers != "plain":
        plain = challengers[PLAIN] if PLAIN in confirmed else default
    contest = contests.get(confirmed[0] if confirmed else BEST)
    claim = contest.claim if contest else None
    default_us = _median(times.baseline(arms))
    evidence = Evidence(
        size_bytes=arms.problem.size_bytes,
        dtype=default.dtype,
        default=label(default, default.setup),
        default_us=default_us,
        chosen_us=_median(times.times(chosen)) if confirmed else default_us,
        ratio=claim.ratio if claim and confirmed and math.isfinite(claim.ratio) else 1.0,
        low=claim.low if claim and confirmed else None,
        high=claim.high if claim and confirmed else None,
        interval_of="launches" if claim and confirmed else None,
        pairs=claim.pairs if claim else 0,
        p=contest.adjusted if contest else None,
        apparent=control.ratio if math.isfinite(control.ratio) else None,
        candidates=len(arms.problem.candidates),
        run=",".join(times.runs),
        verdict=Verdict.CONFIRMED if confirmed else _why_default(arms, confirming, index),
    )
    return Decision(problem=arms.problem, chosen=chosen, on_plain=plain, evidence=evidence)


def _why_default(arms: Arms, confirming: Confirming, index: int) -> str:
    default = arms.problem.default.setup
    case = arms.challengers[confirming.started.key].get(BEST)
    if case is None:
        others = [cases[BEST].setup for cases in arms.challengers.values() if BEST in cases]
        but = f", but with {describe_start(others[0])}, which does not pay over all sizes" if others else ""
        return f"default kept: nothing was faster in the search{but}"
    contest = confirming.contests(index)[BEST]
    seen = f", measured {contest.claim.ratio:.3f}x" if math.isfinite(contest.claim.ratio) else ""
    return f"default kept: {label(case, default)}{seen}, {contest.verdict}"


def _median(times: Mapping[ProcessGroup, float]) -> float:
    return float(np.median(list(times.values()))) if times else 0.0
