"""When the adaptive stop stops, and how far the median is then from the truth: simulated series with memory.

Before and after: taking all samples as independent, and counting neighbours that are alike as fewer. A transient is
judged by the level that it ends at, two states by one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

import numpy as np

from commbench import stats
from commbench.stats import Floats

SERIES, PRECISION, FEWEST, MOST = 2000, 0.02, 20, 1000
TRUE = 100.0
Make = Callable[[np.random.Generator, int], Floats]


def wandering(rho: float, sigma: float) -> Make:
    """Lognormal, of first order autoregressive logarithms."""

    def make(rng: np.random.Generator, count: int) -> Floats:
        noise = rng.normal(0, 1, count)
        logs = [noise[0]]
        for step in noise[1:]:
            logs.append(rho * logs[-1] + math.sqrt(1 - rho * rho) * step)
        return TRUE * np.exp(sigma * np.array(logs))

    return make


def two_states(change: float) -> Make:
    """A fast state and one that is 22 % slower, with 1 % noise each; it changes with this probability."""

    def make(rng: np.random.Generator, count: int) -> Floats:
        states = (np.cumsum(rng.random(count) < change) + rng.integers(2)) % 2
        return TRUE * np.exp(0.2 * states + rng.normal(0, 0.01, count))

    return make


def fading(rng: np.random.Generator, count: int) -> Floats:
    """Half as much again at first, which fades in 15 samples."""
    return TRUE * np.exp(0.4 * np.exp(-np.arange(count) / 15) + rng.normal(0, 0.02, count))


KINDS: dict[str, Make] = {
    "independent, 3 %": wandering(0, 0.03),
    "independent, 10 %": wandering(0, 0.1),
    "AR(1) 0.5, 3 %": wandering(0.5, 0.03),
    "AR(1) 0.5, 10 %": wandering(0.5, 0.1),
    "AR(1) 0.8, 3 %": wandering(0.8, 0.03),
    "AR(1) 0.8, 10 %": wandering(0.8, 0.1),
    "two states, 1 change in 5": two_states(0.2),
    "two states, 1 change in 20": two_states(0.05),
    "a transient of 15": fading,
}


def stopped(series: Floats) -> tuple[int, float, float]:
    """Return the samples taken, their median and the relative half-width: the loop's way to grow and to stop."""
    have, growth = 0, 0.0
    while True:
        have += min(max(1, FEWEST - have, int(have * growth)), MOST - have)
        width = stats.relative_half_width(series[:have])
        growth = max(min(width / PRECISION, 2.0) ** 2 - 1, 0.25)
        if width <= PRECISION or have == MOST:
            return have, float(np.median(series[:have])), width


def main() -> None:
    heads = ("samples", "at 20", "covered", "error, median", "95th percentile")
    print(f"{'series':<28} {'':>7}" + "".join(f"{head:>17}" for head in heads))
    for name, make in KINDS.items():
        for when in ("before", "after"):
            count = (lambda samples: float(samples.size)) if when == "before" else stats.effective_samples
            rng = np.random.default_rng(0)
            with mock.patch.object(stats, "effective_samples", count):
                found = np.array([stopped(make(rng, MOST)) for _ in range(SERIES)])
            taken, medians, widths = found.T
            errors = np.abs(medians / TRUE - 1)
            covered = np.mean(np.abs(medians - TRUE) <= widths * medians)
            cells = [f"{np.median(taken):.0f}", f"{100 * np.mean(taken == FEWEST):.0f} %", f"{100 * covered:.0f} %"]
            cells += [f"{100 * value:.2f} %" for value in (np.median(errors), np.quantile(errors, 0.95))]
            print(f"{name:<28} {when:>7}" + "".join(f"{cell:>17}" for cell in cells), flush=True)
