"""A/B of a training: the ratio, what was said before, and the losses; and how arms are typed."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from commbench.ab.pairs import BASELINE, CANDIDATE
from commbench.ab.turns import TurnLimits
from commbench.errors import CommbenchError, UsageError
from commbench.stats import Verdict
from commbench.train import ab, ab_arms, ab_table


def lines(rate: float, *, steps: int = 20, first: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    """Of a launch that warms up for three steps."""
    values = {"exposed_comm_us": 3e5, "exposed_comm_min_us": 2.5e5, "exposed_moe_us": 2.5e5, **more}
    rates = [rate / 10 if step < 3 else rate for step in range(steps)]
    return [{"step": n + 1, "tokens_per_s": each, "loss": first + n, **values} for n, each in enumerate(rates)]


def launches(gain: float, rounds: int = 10) -> list[ab.Launched]:
    """Rounds drift by a lot, arms of a round alike."""
    found = []
    for number in range(rounds):
        drift = 1 + 0.5 * math.sin(number)
        found.append(ab.launched(BASELINE, number, lines(1000 * drift), 1000))
        found.append(ab.launched(CANDIDATE, number, lines(1000 * drift * gain * (1 + 0.001 * (-1) ** number)), 1000))
    return found


def test_the_ratio_is_of_rounds_and_the_first_steps_do_not_count() -> None:
    outcome = ab.compare(launches(1.1))
    assert outcome.ratio == pytest.approx(1.1, rel=2e-3) and outcome.verdict is Verdict.FASTER
    assert outcome.pairs == 10 and outcome.claim
    assert outcome.low is not None and outcome.high is not None and outcome.low < 1.1 < outcome.high < 1.11
    assert ab.compare(launches(1.0)).verdict is Verdict.NO_DIFFERENCE
    few = ab.compare(launches(1.1, rounds=3))
    assert few.verdict is Verdict.NOT_ESTIMABLE and not few.claim
    assert outcome.exposed[BASELINE] == pytest.approx(0.3 * 1.0, rel=0.2)


def test_losses_are_compared_step_by_step() -> None:
    same = launches(1.1, 2)
    assert ab.compare(same).losses == ab.compare(same).apart == 0
    text = "\n".join(ab_table.table(ab.compare(same), None))
    assert "identical at every step" in text and "10 pairs: rounds=10" in text
    losses = (*same[-1].losses[:-1], same[-1].losses[-1] * (1 + 1e-3))
    other = ab.compare([dataclasses.replace(one, losses=losses) if one.arm == CANDIDATE else one for one in same])
    assert other.losses == pytest.approx(1e-3) and other.apart == 0
    assert other.first == other.first_apart == 0
    assert "one arm are identical: sums in another order, or a mistake" in "\n".join(ab_table.table(other, None))
    # A launch of the candidate that is not as its others: the arm itself has launches so far apart.
    noisy = ab.compare([*same[:-2], *(dataclasses.replace(one, losses=losses) for one in same[-2:])])
    assert noisy.apart == noisy.losses == pytest.approx(1e-3)
    assert "launches of one arm by 1.0e-03 and 0.0e+00" in "\n".join(ab_table.table(noisy, None))


def test_losses_that_differ_by_more_than_chance_are_called_a_mistake() -> None:
    """On GPUs launches of one arm differ a little, and that must not hide a candidate that trains another model."""
    same = launches(1.1, 2)
    noise = [1 + 1e-7 * number for number in range(4)]
    found = [dataclasses.replace(one, losses=tuple(loss * by for loss in one.losses))
             for one, by in zip(same, noise, strict=True)]  # fmt: skip
    assert "mistake" not in "\n".join(ab_table.table(ab.compare(found), None))
    off = [dataclasses.replace(one, losses=tuple(1.2 * loss for loss in one.losses)) if one.arm == CANDIDATE else one
           for one in found]  # fmt: skip
    assert "so a mistake" in "\n".join(ab_table.table(ab.compare(off), None))


def test_the_launch_before_the_rounds_tells_what_launches_of_one_arm_differ_by() -> None:
    """With one round there is no other pair of one arm."""
    one = launches(1.1, 1)
    assert ab.compare(one).apart == 0
    other = dataclasses.replace(one[0], round=-1, losses=tuple(1.001 * loss for loss in one[0].losses))
    assert ab.compare(one, other).apart == pytest.approx(1e-3)
    assert ab.compare(one, other).pairs == 1


def test_steps_under_a_profiler_do_not_count() -> None:
    steps = lines(1000)
    slow = [
        {**one, "tokens_per_s": 1.0, "profiled": True} if number in (5, 6) else one for number, one in enumerate(steps)
    ]
    assert ab.launched(BASELINE, 0, slow[:9], 1000).tokens_per_s == 1000


def test_a_launch_of_two_steps_says_nothing() -> None:
    with pytest.raises(CommbenchError, match="steps=2"):
        ab.launched(BASELINE, 0, lines(1000)[:2], 1000)


def test_how_arms_are_typed() -> None:
    words = ("tiny", "batch=32", "baseline=default", "candidate=p.json", "candidate.schedule=pipelined", "rounds=3")
    arms, limits, model = ab_arms.arms_of(words)
    assert model is None and ab_arms.arms_of((*words, "model=m.json"))[2] == Path("m.json")
    one, two = arms[BASELINE].config, arms[CANDIDATE].config
    assert limits == TurnLimits(rounds=3) and (one.profile, two.profile) == (None, str(Path("p.json").resolve()))
    assert (one.schedule, two.schedule) == ("sequential", "pipelined")
    assert one.batch == two.batch == 32 and one.steps == 20 and one.save_every is None
    assert ab_arms.arms_of(("tiny", "candidate.schedule=pipelined", "steps=7"))[0][BASELINE].config.steps == 7


def test_a_budget_takes_the_place_of_rounds() -> None:
    assert ab_arms.arms_of(("tiny", "candidate.schedule=pipelined"))[1] == TurnLimits(rounds=10)
    assert ab_arms.arms_of(("tiny", "candidate=p.json", "budget=30m"))[1] == TurnLimits(budget_s=1800)
    both = ab_arms.arms_of(("tiny", "candidate=p.json", "budget=90", "rounds=7"))[1]
    assert both == TurnLimits(rounds=7, budget_s=90)


def test_variables_of_one_arm_are_a_difference() -> None:
    arms, _, _ = ab_arms.arms_of(("tiny", "candidate.env.GLOO_X=1"))
    assert arms[BASELINE].settings() != arms[CANDIDATE].settings()
    assert ab_table.names([arm.settings() for arm in arms.values()]) == "env.GLOO_X=default against 1"
    same_name = ab_arms.arms_of(("tiny", "baseline=a/p.json", "candidate=b/p.json"))[0]
    assert "a/p.json against /" in ab_table.names([arm.settings() for arm in same_name.values()])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny",), "the same"),
        (("tiny", "candidate.lr=0.1"), "different models: lr"),
        (("tiny", "candidate.path=README.md"), "different models: path"),
        (("tiny", "candidate=p.json", "rounds=0"), "rounds=0"),
        (("tiny", "candidate=p.json", "rounds=²"), "rounds=²"),
        (("tiny", "candidate=p.json", "steps=2"), "the first 2 warm up"),
        (("tiny", "candidate="), "'candidate=' has no value"),
        (("tiny", "candidate=p.json", "candidate.steps=3"), "20 and 3 steps"),
        (("tiny", "candidate.nonsense=1"), "nonsense"),
    ],
)
def test_arms_that_cannot_be(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ab_arms.arms_of(words)


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    from commbench.plots.ab import draw

    found = launches(1.1)
    arm = {"recipe": "tiny", "fabric": "emulated", "nodes": 2, "ranks_per_node": 4, "transport": "gloo"}
    about = {"arms": {BASELINE: arm}, "machine_text": "a machine", "started": "2026-01-01", "commbench_version": "0"}
    bias = {"low": 0.9, "high": 0.95, "comparisons": 7, "why": "so"}
    for more, pale in ({"predicted": None}, 0), ({"predicted": 1.05}, 0), ({"predicted": 1.05, "predicted_low": 1.0,
                       "predicted_high": 1.1, "predicted_bias": bias}, 1):  # fmt: skip
        (path,) = draw(found, ab.compare(found), {**about, **more}, "profile=default against p.json", tmp_path)
        assert path.stat().st_size > 10_000
        svg = " ".join(re.findall("<!-- (.*?) -->", path.with_suffix(".svg").read_text()))
        for words in (
            "2x4 ranks on an emulated network",
            "95 % interval of 10 pairs",
            "Candidate better: 1.10x [1.",
            "a machine",
            "profile=default against p.json",
        ):
            assert words in svg, words
        assert svg.count("measured / predicted was 0.9 - 0.95 in 7 of 7") == pale


def test_what_steps_wait_has_an_interval() -> None:
    """Of steps that wait for 0.18 and 0.22 s of a second by turns, half the interval is a tenth of the median."""
    steps = lines(1000)
    found = [{**one, "exposed_moe_us": 2.3e5 + 4e4 * (n % 2)} for n, one in enumerate(steps)]
    its = ab.launched(BASELINE, -1, found, 1000)
    assert its.waited_part == pytest.approx(0.2) and its.waited_half_width == pytest.approx(0.1)
    assert ab.launched(BASELINE, -1, steps, 1000).waited_half_width == 0
    assert ab.launched(BASELINE, -1, found[:7], 1000).waited_half_width is None, "5 steps have no interval"
    none = [{**one, "exposed_moe_us": 5e4} for one in steps]
    assert ab.launched(BASELINE, -1, none, 1000).waited_half_width is None, "nothing waits"
