"""What is said of an A/B of a training before its rounds: the ratio of throughputs, its interval, its known bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from commbench.serialise import from_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedBias:
    """How such predictions came out: measured / predicted was `low` to `high` in all of the comparisons on record."""

    low: float
    high: float
    comparisons: int
    why: str

    def __str__(self) -> str:
        return f"measured / predicted was {self.low:g} - {self.high:g} in {self.comparisons} of {self.comparisons}"


# docs/project/log.md has each of them, and docs/guide/training.md what is known of the causes.
_OVER_DEFAULT = RecordedBias(
    low=0.85, high=0.98, comparisons=7, why="exchanges gain less beside a training's other work than alone"
)
_OVER_DUPLICATE = RecordedBias(
    low=1.05, high=1.17, comparisons=4, why="the cost model takes duplicates for faster than they are"
)
_PROFILE_KEYS = frozenset({"profile", "allow_mismatch"})


def recorded_bias(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> RecordedBias | None:
    """Return how predictions of such arms came out, None where no A/B of this kind is on record."""
    changed = {key for key in {**baseline, **candidate} if baseline.get(key) != candidate.get(key)}
    if changed <= _PROFILE_KEYS and baseline.get("profile") is None:
        return _OVER_DEFAULT
    if "tp_tokens" in changed and baseline.get("tp_tokens") == "duplicate":
        return _OVER_DUPLICATE
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedRatio:
    """Throughput of the candidate over the baseline's, its 95 % interval, None where nobody knows that, and its bias.

    The interval has what is uncertain in what the prediction was made from, and not the bias.
    """

    value: float
    low: float | None = None
    high: float | None = None
    bias: RecordedBias | None = None

    @property
    def corrected(self) -> tuple[float, float] | None:
        """Return from where to where the ratio lies if it comes out as such predictions did."""
        return None if self.bias is None else (self.value * self.bias.low, self.value * self.bias.high)

    def __str__(self) -> str:
        """`1.191x (1.170 - 1.213)`."""
        return f"{self.value:.3f}x ({'no interval' if self.low is None else f'{self.low:.3f} - {self.high:.3f}'})"


def as_facts(expected: ExpectedRatio | None) -> dict[str, Any]:
    """Return what `ab.json` has of it. Null is what nobody knows."""
    if expected is None:
        return dict.fromkeys(("predicted", "predicted_low", "predicted_high", "predicted_bias"))
    bias = expected.bias
    its = None if bias is None else dataclasses.asdict(bias)
    return {"predicted": expected.value, "predicted_low": expected.low, "predicted_high": expected.high,
            "predicted_bias": its}  # fmt: skip


def from_facts(about: Mapping[str, Any]) -> ExpectedRatio | None:
    """Return what `ab.json` has of it; older ones have the ratio alone. Raises `ValueError` for another bias."""
    if about.get("predicted") is None:
        return None
    bias = about.get("predicted_bias")
    return ExpectedRatio(
        value=about["predicted"], low=about.get("predicted_low"), high=about.get("predicted_high"),
        bias=None if bias is None else from_dict(RecordedBias, bias),
    )  # fmt: skip
