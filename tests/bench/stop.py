"""When the adaptive stop stops, and how far the median is then from the truth: simulated series with memory.

Three rules: taking all samples as independent; counting neighbours that are alike as fewer, by their ranks; and, as it
is, by the two levels that they have, too. A transient is judged by the level that it ends at, two states by one of
them. "Seen": stopped below 320 samples, of which some were of each state. `python -m tests.bench.stop 400`: that many
series of each kind in place of 2000.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from unittest import mock

import numpy as np

from commbench import stats
from commbench.stats import Floats

SERIES, PRECISION, FEWEST, MOST = 2000, 0.02, 20, 1000
TRUE = 100.0
EARLY, STATES_MEET = 320, 110.0
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


def spikes(share: float, length: int = 1) -> Make:
    """2 % noise, and in this share of samples half as much again on average, in runs of this length."""

    def make(rng: np.random.Generator, count: int) -> Floats:
        struck = np.convolve(rng.random(count) < share / length, np.ones(length))[:count] > 0
        return TRUE * np.exp(rng.normal(0, 0.02, count)) * (1 + struck * rng.exponential(0.5, count))

    return make


def mixed(share: float) -> Make:
    """The two states, each sample by itself."""

    def make(rng: np.random.Generator, count: int) -> Floats:
        return TRUE * np.exp(0.2 * (rng.random(count) < share) + rng.normal(0, 0.01, count))

    return make


KINDS: dict[str, Make] = {
    "independent, 3 %": wandering(0, 0.03),
    "independent, 10 %": wandering(0, 0.1),
    "AR(1) 0.5, 3 %": wandering(0.5, 0.03),
    "AR(1) 0.5, 10 %": wandering(0.5, 0.1),
    "AR(1) 0.8, 3 %": wandering(0.8, 0.03),
    "AR(1) 0.8, 10 %": wandering(0.8, 0.1),
    "two states, 1 change in 5": two_states(0.2),
    "two states, 1 change in 20": two_states(0.05),
    "two states, 1 change in 60": two_states(1 / 60),
    "a transient of 15": fading,
    "spikes in 5 %": spikes(0.05),
    "spikes in 20 %": spikes(0.2),
    "spikes in 20 %, runs of 3": spikes(0.2, 3),
    "mixed by 20 %": mixed(0.2),
    "mixed by 40 %": mixed(0.4),
}
RULES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "independent": lambda: mock.patch.object(stats, "effective_samples", lambda samples: float(samples.size)),
    "ranks": lambda: mock.patch.object(stats, "_levels", lambda samples, ordered: None),
    "levels": contextlib.nullcontext,
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


def main(series: int = SERIES) -> None:
    heads = ("samples", "mean", f"at {FEWEST}", "seen", "covered", "error, 95 %")
    print(f"{'series':<28} {'':>12}" + "".join(f"{head:>13}" for head in heads))
    for name, make in KINDS.items():
        for rule, patch in RULES.items():
            rng, found = np.random.default_rng(0), []
            with patch():
                for _ in range(series):
                    times = make(rng, MOST)
                    taken, median, width = stopped(times)
                    slow = int(np.count_nonzero(times[:taken] > STATES_MEET))
                    found.append((taken, median, width, taken < EARLY and 0 < slow < taken))
            count, medians, widths, both = np.array(found, dtype=float).T
            errors = np.abs(medians / TRUE - 1)
            covered = np.mean(np.abs(medians - TRUE) <= widths * medians)
            cells = [f"{np.median(count):.0f}", f"{count.mean():.0f}", f"{100 * np.mean(count == FEWEST):.0f} %"]
            cells += [f"{100 * both.mean():.0f} %" if "states" in name else "-", f"{100 * covered:.0f} %"]
            cells += [f"{100 * np.quantile(errors, 0.95):.2f} %"]
            print(f"{name:<28} {rule:>12}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
