"""How an A/B is predicted: from one launch and what exchanges take, with the interval of both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping

import numpy as np
import pytest

from commbench.ab.pairs import BASELINE
from commbench.profile.table import Curve
from commbench.train import ab
from commbench.train.ab_prediction import (
    ExchangeTime,
    default_us,
    gain,
    gain_deviation,
    predicted,
    ratio_deviation,
)
from tests.support import profiles

Causes = Mapping[Hashable, float]


def calibration(half_width: float | None = 0.098) -> ab.Launched:
    """A step of a second, 0.25 s of which wait for expert layers, 0.05 s of that for a rank that computes longer."""
    return ab.Launched(
        arm=BASELINE, round=-1, tokens_per_s=1000, step_us=1e6, exposed_us=3e5, exposed_min_us=2.5e5,
        exposed_moe_us=2.5e5, losses=(), waited_half_width=half_width,
    )  # fmt: skip


def takes(us: float, **deviations: float) -> list[ExchangeTime]:
    causes: dict[Hashable, float] = {}
    causes.update(deviations)
    return [ExchangeTime(us, causes)]


def ratio(before_us: float, after_us: float) -> float | None:
    found = predicted(calibration(), takes(before_us), takes(after_us))
    return None if found is None else found.value


def test_what_is_predicted_follows_from_one_launch_and_what_exchanges_take() -> None:
    assert ratio(150, 100) == pytest.approx(1 / (1 - 0.2 * (1 - 100 / 150)))
    assert ratio(100, 150) == pytest.approx(1 / (1 - 0.2 * (1 - 150 / 100)))
    assert ratio(100, 100) == 1
    assert ratio(0, 0) is None
    equal = dataclasses.replace(calibration(), exposed_min_us=None)  # of before there was this key
    found = predicted(equal, takes(100), takes(50))
    assert found is not None and found.value == pytest.approx(1 / (1 - 0.25 / 2))


def test_the_interval_is_that_of_resampling() -> None:
    """f is 0.2 with a deviation of 5 %, ln r has one of 0.08 and 0.06 together: 0.1."""
    found = predicted(calibration(), takes(100), takes(40, one=0.08, two=-0.06))
    assert found is not None and found.low is not None and found.high is not None
    rng = np.random.default_rng(1)
    parts, logs = rng.normal(0.2, 0.01, 200_000), rng.normal(math.log(0.4), 0.1, 200_000)
    low, high = np.quantile(1 / (1 - parts * (1 - np.exp(logs))), (0.025, 0.975))
    assert [found.low, found.high] == pytest.approx([low, high], abs=2e-3)
    s = math.hypot(0.6 * 0.01 / 0.88, 0.2 * 0.4 * 0.1 / 0.88)
    assert [found.low, found.high] == pytest.approx([math.exp(-1.96 * s) / 0.88, math.exp(1.96 * s) / 0.88])


def test_each_cause_makes_the_interval_wider() -> None:
    def width(half_width: float, deviation: float) -> float:
        found = predicted(calibration(half_width), takes(100), takes(40, one=deviation))
        assert found is not None and found.low is not None and found.high is not None
        return math.log(found.high / found.low)

    assert width(0, 0) == 0
    # ratio (1 - r) s_f and ratio f r s_r, with ratio 1 / 0.88.
    assert width(0.196, 0) == pytest.approx(2 * 1.96 * 0.6 * 0.02 / 0.88)
    assert width(0, 0.1) == pytest.approx(2 * 1.96 * 0.2 * 0.4 * 0.1 / 0.88)
    assert width(0.196, 0.1) == pytest.approx(math.hypot(width(0.196, 0), width(0, 0.1)))


@pytest.mark.parametrize(("half_width", "deviation"), [(None, 0.1), (0.1, math.nan)])
def test_what_nobody_knows_has_no_interval(half_width: float | None, deviation: float) -> None:
    found = predicted(calibration(half_width), takes(100), takes(50, one=deviation))
    assert found is not None and found.value == pytest.approx(1 / 0.9) and found.low is found.high is None


@pytest.mark.parametrize(
    ("before", "after", "deviation"),
    [
        ([(100, {})], [(50, {"a": 0.1})], 0.1),
        ([(100, {"a": 0.1})], [(50, {"a": 0.1})], 0.0),  # wrong alike
        ([(100, {"a": 0.1})], [(50, {"b": 0.1})], math.hypot(0.1, 0.1)),
        # Three quarters of the one, half of the other.
        ([(75, {"a": 0.2}), (25, {"b": 0.2})], [(10, {"a": 0.2}), (10, {"b": 0.2})], math.hypot(0.05, 0.05)),
        ([(100, {})], [(30, {"a": 0.1}), (20, {"a": 0.1})], 0.1),  # of one cause, so not averaged
        ([(100, {})], [(25, {"a": 0.1}), (25, {"b": 0.1})], math.hypot(0.05, 0.05)),
    ],
)
def test_what_arms_have_in_common_cancels(
    before: list[tuple[float, Causes]], after: list[tuple[float, Causes]], deviation: float
) -> None:
    times = [[ExchangeTime(us, causes) for us, causes in arm] for arm in (before, after)]
    assert ratio_deviation(*times) == pytest.approx(deviation, abs=1e-12)


def test_times_of_a_tuning_are_read_between_its_sizes() -> None:
    sizes = [dataclasses.replace(profiles.EVIDENCE, size_bytes=size, default_us=400.0, chosen_us=us)
             for size, us in ((1024, 100.0), (4096, 400.0))]  # fmt: skip
    curve = Curve([profiles.choice("all_to_all", "pairwise", 0, 8192, evidence=sizes),
                   profiles.choice("all_to_all", "direct", 8193, evidence=[])])  # fmt: skip
    assert default_us(curve, 2048) == pytest.approx(400)
    assert gain(curve, 2048) == pytest.approx(2)
    assert gain(curve, 1) == pytest.approx(4), "the nearest size's beyond them"
    assert gain(curve, 9000) == 1, "the default is chosen"
    kept = [dataclasses.replace(one, verdict="default kept: no") for one in sizes]
    curve = Curve([profiles.choice("all_to_all", "direct", evidence=kept)])
    assert gain(curve, 1024) == 1, "what was not confirmed is not taken"
    assert default_us(Curve([profiles.choice("all_to_all", "direct", evidence=[])]), 1024) is None


def test_a_gain_is_as_uncertain_as_its_evidence() -> None:
    ends = ((1024, 2.0, 2.0 * math.exp(2 * 1.96 * 0.1)), (4096, 1.0, math.exp(2 * 1.96 * 0.3)))
    sizes = [dataclasses.replace(profiles.EVIDENCE, size_bytes=size, low=low, high=high) for size, low, high in ends]
    choice = profiles.choice("all_to_all", "pairwise", evidence=sizes)
    for size, deviation in ((1024, 0.1), (2048, 0.2), (4096, 0.3), (1 << 20, 0.3)):
        assert gain_deviation(choice, size) == pytest.approx(deviation)
    kept = [dataclasses.replace(one, verdict="default kept: no", low=None) for one in sizes]
    assert gain_deviation(profiles.choice("all_to_all", "direct", evidence=kept), 1024) == 0
    unknown = [dataclasses.replace(sizes[0], low=None, high=None)]
    assert math.isnan(gain_deviation(profiles.choice("all_to_all", "pairwise", evidence=unknown), 1024))
