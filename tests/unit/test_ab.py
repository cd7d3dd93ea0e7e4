"""A/B of a training: the ratio, what was said before, and the losses; and how arms are typed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from commbench import ab
from commbench.ab import BASELINE, CANDIDATE
from commbench.commands import train_ab
from commbench.errors import CommbenchError, UsageError
from commbench.profile.table import Curve
from commbench.stats import Verdict
from tests import profiles


def lines(rate: float, *, steps: int = 20, first: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    """Of a launch that warms up for three steps."""
    values = {"exposed_comm_us": 3e5, "exposed_moe_us": 2e5, **more}
    slow = [{"tokens_per_s": rate / 10, "loss": first + step, **values} for step in range(3)]
    return [*slow, *({"tokens_per_s": rate, "loss": first + step, **values} for step in range(3, steps))]


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
    text = "\n".join(train_ab.table(ab.compare(same), None))
    assert "identical at every step" in text and "10 pairs: rounds=10" in text
    losses = (*same[-1].losses[:-1], same[-1].losses[-1] * (1 + 1e-3))
    other = ab.compare([dataclasses.replace(one, losses=losses) if one.arm == CANDIDATE else one for one in same])
    assert other.losses == pytest.approx(1e-3) and other.apart == 0
    assert other.first == other.first_apart == 0
    assert "one arm are identical: sums in another order, or a mistake" in "\n".join(train_ab.table(other, None))
    # A launch of the candidate that is not as its others: the arm itself has launches so far apart.
    noisy = ab.compare([*same[:-2], *(dataclasses.replace(one, losses=losses) for one in same[-2:])])
    assert noisy.apart == noisy.losses == pytest.approx(1e-3)
    assert "launches of one arm by 1.0e-03 and 0.0e+00" in "\n".join(train_ab.table(noisy, None))


def test_what_is_predicted_follows_from_one_launch_and_what_exchanges_take() -> None:
    found = ab.launched(BASELINE, -1, lines(1000), 1000)  # a step of a second, 0.2 s of which wait for expert layers
    assert ab.predicted(found, 150, 100) == pytest.approx(1 / (1 - 0.2 * (1 - 100 / 150)))
    assert ab.predicted(found, 100, 150) == pytest.approx(1 / (1 - 0.2 * (1 - 150 / 100)))
    assert ab.predicted(found, 100, 100) == 1
    assert ab.predicted(found, None, 100) is None and ab.predicted(found, 100, None) is None
    text = "\n".join(train_ab.table(ab.compare(launches(1.1)), 1.0))
    assert "predicted before: 1.000x; measured / predicted 1.1" in text


def test_times_of_a_tuning_are_read_between_its_sizes() -> None:
    sizes = [dataclasses.replace(profiles.EVIDENCE, size_bytes=size, default_us=400.0, chosen_us=us)
             for size, us in ((1024, 100.0), (4096, 400.0))]  # fmt: skip
    curve = Curve([profiles.choice("all_to_all", "pairwise", 0, 8192, evidence=sizes),
                   profiles.choice("all_to_all", "direct", 8193, evidence=[])])  # fmt: skip
    assert ab.tuned_us(curve, 2048, default=True) == pytest.approx(400)
    assert ab.tuned_us(curve, 2048, default=False) == pytest.approx(200), "its gain is 2 there"
    assert ab.tuned_us(curve, 1, default=False) == pytest.approx(100), "the nearest size's beyond them"
    assert ab.tuned_us(curve, 9000, default=False) == ab.tuned_us(curve, 9000, default=True), "the default is chosen"
    kept = [dataclasses.replace(one, verdict="default kept: no") for one in sizes]
    curve = Curve([profiles.choice("all_to_all", "direct", evidence=kept)])
    assert ab.tuned_us(curve, 1024, default=False) == pytest.approx(400), "what was not confirmed is not taken"
    assert ab.tuned_us(Curve([profiles.choice("all_to_all", "direct", evidence=[])]), 1024, default=True) is None


def test_steps_under_a_profiler_do_not_count() -> None:
    steps = lines(1000)
    slow = [
        {**one, "tokens_per_s": 1.0, "profiled": True} if number in (5, 6) else one for number, one in enumerate(steps)
    ]
    assert ab.launched(BASELINE, 0, slow[:9], 1000).tokens_per_s == 1000


def test_a_launch_of_two_steps_says_nothing() -> None:
    with pytest.raises(CommbenchError, match="2 steps"):
        ab.launched(BASELINE, 0, lines(1000)[:2], 1000)


def test_how_arms_are_typed() -> None:
    words = ("tiny", "batch=32", "baseline=default", "candidate=p.json", "candidate.schedule=pipelined", "rounds=3")
    arms, rounds, model = train_ab.arms_of(words)
    assert model is None and train_ab.arms_of((*words, "model=m.json"))[2] == Path("m.json")
    one, two = arms[BASELINE].config, arms[CANDIDATE].config
    assert rounds == 3 and (one.profile, two.profile) == (None, str(Path("p.json").resolve()))
    assert (one.schedule, two.schedule) == ("sequential", "pipelined")
    assert one.batch == two.batch == 32 and one.steps == 20 and one.save_every is None
    assert train_ab.arms_of(("tiny", "candidate.schedule=pipelined", "steps=7"))[0][BASELINE].config.steps == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny",), "the same"),
        (("tiny", "candidate.lr=0.1"), "different models: lr"),
        (("tiny", "candidate=p.json", "rounds=0"), "rounds=0"),
        (("tiny", "candidate=p.json", "candidate.steps=3"), "20 and 3 steps"),
        (("tiny", "candidate.nonsense=1"), "nonsense"),
    ],
)
def test_arms_that_cannot_be(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_ab.arms_of(words)


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    from commbench.plots.ab import draw

    found = launches(1.1)
    for expected, name in ((None, "one.png"), (1.05, "two.png")):
        assert draw(found, ab.compare(found), expected, "default and p.json", tmp_path / name).stat().st_size > 10_000
