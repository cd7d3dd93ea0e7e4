"""What is said of an A/B before its rounds: its words, what is stored, and which bias is on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commbench.output.grid import refolded
from commbench.train import ab, ab_table
from commbench.train.ab_expected import ExpectedRatio, RecordedBias, as_facts, from_facts, recorded_bias
from tests.unit.train.test_ab import launches

ROOT = Path(__file__).parents[3]
BIAS = RecordedBias(low=0.85, high=0.98, comparisons=7, why="beside other work")
EXPECTED = ExpectedRatio(value=1.2, low=1.15, high=1.25, bias=BIAS)


def test_what_is_stored_is_read_and_older_folders_too() -> None:
    for one in (EXPECTED, ExpectedRatio(value=1.2), None):
        assert from_facts(json.loads(json.dumps(as_facts(one)))) == one
    assert from_facts({"predicted": 1.1}) == ExpectedRatio(value=1.1), "of before there was an interval"
    assert from_facts({}) is None
    assert as_facts(None) == dict.fromkeys(("predicted", "predicted_low", "predicted_high", "predicted_bias"))
    with pytest.raises(ValueError, match="low"):
        from_facts({"predicted": 1.1, "predicted_bias": {"low": "x", "high": 1.0, "comparisons": 1, "why": ""}})


def test_the_table_has_the_interval_and_the_bias() -> None:
    outcome = ab.compare(launches(1.1))
    text = "\n".join(ab_table.table(outcome, EXPECTED))
    assert max(map(len, refolded(text.splitlines()))) <= 100
    assert "predicted before: 1.200x (1.150 - 1.250); measured / predicted 0.917" in text
    assert "measured / predicted was 0.85 - 0.98 in 7 of 7: so 1.020 - 1.176x; beside other work" in text
    bare = "\n".join(ab_table.table(outcome, ExpectedRatio(value=1.0)))
    assert "predicted before: 1.000x (no interval); measured / predicted 1.1" in bare and "record" not in bare


@pytest.mark.parametrize(
    ("baseline", "candidate", "low"),
    [
        ({"profile": None}, {"profile": "p.json"}, 0.85),
        ({"profile": None}, {"profile": "p.json", "allow_mismatch": True}, 0.85),
        ({"profile": None, "tp_tokens": "duplicate"}, {"profile": "p.json", "tp_tokens": None}, 1.05),
        ({"profile": None, "tp_tokens": "duplicate"}, {"profile": "p.json", "tp_tokens": "duplicate"}, 0.85),
        ({"profile": "old.json"}, {"profile": "new.json"}, None),
        ({"profile": "p.json"}, {"profile": None}, None),
        ({"profile": None, "schedule": "sequential"}, {"profile": "p.json", "schedule": "parm_s2"}, None),
    ],
)
def test_a_bias_is_of_arms_that_are_on_record(
    baseline: dict[str, Any], candidate: dict[str, Any], low: float | None
) -> None:
    found = recorded_bias(baseline, candidate)
    assert (None if found is None else found.low) == low


@pytest.mark.parametrize(
    "name", ["tuned_over_default", "tuned_over_duplicate", "tp2_tuned_over_default", "tp2_tuned_over_duplicate"]
)
def test_the_bias_holds_for_the_runs_that_are_kept(name: str) -> None:
    """Rounded to the digits in which it is said."""
    about = json.loads((ROOT / "results" / "reference" / "train_ab-2x4-2cpu" / name / "ab.json").read_text())
    bias = recorded_bias(about["arms"]["baseline"], about["arms"]["candidate"])
    assert bias is not None and bias.low <= round(about["ratio"] / about["predicted"], 2) <= bias.high
