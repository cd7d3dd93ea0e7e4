"""What a form misses is learnt where it was measured, and is the less sure the further away a case is."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from commbench.cost_model import calibration
from commbench.cost_model.forms import Form
from commbench.cost_model.loads import batch, of_case
from commbench.cost_model.misfit import Fold, Misfit, place
from commbench.cost_model.skew import Skews
from commbench.layout import Layout
from tests.support import fake_runs

LAYOUTS = [Layout(2, 1), Layout(2, 2), Layout(2, 4), Layout(4, 2)]


def learnt(noise: float = 0.02) -> Misfit:
    """Direct is 10 % slower than the form says wherever it is, bruck 20 % faster."""
    rng = np.random.default_rng(3)
    of = {"direct": 0.1, "bruck": -0.2}
    keys = [(size, layout, way) for size in (4096, 65536, 1 << 20) for layout in LAYOUTS for way in of]
    errors = np.array([of[way] + rng.normal(0, noise) for _, _, way in keys])
    folds = [Fold(errors=errors, without=np.array([other == layout for _, other, _ in keys])) for layout in LAYOUTS]
    places, ways = [place(size, layout) for size, layout, _ in keys], [way for *_, way in keys]
    return Misfit.learnt(places, ways, errors, [noise] * len(keys), folds)


def test_what_is_a_ways_own_is_learnt_and_holds_nearby() -> None:
    found = learnt()
    for way, error in (("direct", 0.1), ("bruck", -0.2)):
        said, deviation = found.predict(place(65536, Layout(4, 4)), way)
        assert said == pytest.approx(error, abs=0.05) and deviation < 0.15
    _, of_unknown = found.predict(place(65536, Layout(4, 2)), None)
    _, of_known = found.predict(place(65536, Layout(4, 2)), "direct")
    assert of_unknown > 1.5 * of_known


def test_spread_grows_with_distance_in_every_direction() -> None:
    found = learnt()
    for away in (
        [place(65536 << octaves, Layout(2, 2)) for octaves in (0, 6, 8, 12)],
        [place(65536 >> octaves, Layout(2, 2)) for octaves in (0, 5, 8, 12)],
        [place(65536, Layout(2 << octaves, 2)) for octaves in (0, 3, 5, 8)],
        [place(65536, Layout(2, 2 << octaves)) for octaves in (0, 3, 5, 8)],
    ):
        deviations = [found.predict(where, "direct")[1] for where in away]
        assert all(near < far for near, far in itertools.pairwise(deviations)), deviations


def test_a_layout_outside_of_those_measured_is_less_sure() -> None:
    found = learnt()
    assert found.drift(Layout(2, 2)) == found.drift(Layout(4, 2)) == 0.0
    assert found.drift(Layout(4, 4)) == pytest.approx(
        0.1
    )  # twice as many ranks, though neither nodes nor ranks on each
    assert found.drift(Layout(64, 8)) == pytest.approx(0.6)


def test_skew_does_not_grow_in_proportion_to_ranks() -> None:
    alone = Skews({2: 7.6})
    assert alone.of(2) == pytest.approx(3.8)
    assert alone.of(512) == pytest.approx(3.8 * 9)  # a barrier's rounds
    several = Skews({2: 10.0, 4: 20.0, 8: 40.0})
    assert several.of(16) == pytest.approx(40.0)  # as it was seen to grow
    assert several.of(512) < 40.0 * 3
    assert Skews({}).of(8) == 0.0 and Skews({4: 0.0}).of(8) == 0.0 and Skews({4: 5.0}).of(1) == 0.0


def test_what_a_calibration_lacks_is_named() -> None:
    words = ("sizes.min=4K", "sizes.max=64K", "sizes.factor=4")
    few = fake_runs.planned("layout=2x2", "collective=all_to_all", "algorithm=direct", *words)
    said = " ".join(calibration.missing(few))
    assert "3 numbers of ranks (measured: 4)" in said and "pairs" in said and "several steps (measured: direct)" in said
    enough = fake_runs.planned(
        "layout=2x1,2x2,4x2", "collective=all_to_all,pairs", "algorithm=direct,pairwise,bruck,2d_intra_first", *words
    )
    assert calibration.missing(enough) == ()


@pytest.mark.parametrize("power", [1.0, 2.0, math.inf])
def test_slopes_are_those_of_the_time(power: float) -> None:
    cases = fake_runs.planned("layout=2x2,3x5", "collective=all_to_all", "algorithm=all", "sizes.list=[4K,100K]")
    loads = batch([moves for case in cases if (moves := of_case(case)) is not None])
    form = Form("node", "machine", power, burst=True, replies=True, call=True)
    costs = np.random.default_rng(0).uniform(1, 50, len(form.costs))
    times, slopes = form.slopes(costs, loads)
    assert times == pytest.approx(form.time_us(costs[None], loads)[0])
    for number, name in enumerate(form.costs):
        if name != "burst_us":  # it is declared, not fitted
            change = np.where(np.arange(len(costs)) == number, 1e-5, 0.0)
            ends = form.time_us(np.array([costs - change, costs + change]), loads)
            assert slopes[:, number] == pytest.approx((ends[1] - ends[0]) / 2e-5, rel=1e-3, abs=1e-3), name


def test_a_misfit_is_kept_as_it_is() -> None:
    found = learnt()
    again = Misfit(**dataclasses.asdict(found))
    where = place(65536, Layout(4, 4))
    assert again.predict(where, "direct") == found.predict(where, "direct")
