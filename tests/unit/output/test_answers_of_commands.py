"""What tune, stragglers and model say last, of profiles, examinations and fits that nobody measured."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from commbench.analysis.stragglers.examine import Examined
from commbench.analysis.stragglers.search import Straggler
from commbench.cost_model.model import Model
from commbench.layout import Layout
from commbench.output import stragglers
from commbench.output.answer import arms, fitted, slow, tuned
from commbench.output.answer.claims import Answer
from commbench.profile import Evidence
from commbench.stats import Verdict
from tests.support.profiles import choice, profile

USE = ("use it", "commbench export p.json --format env")
TYPED = {"command": ["commbench", "sweep", "pairs", "launches=2"]}


def evidence(size_bytes: int, ratio: float, verdict: str = "confirmed") -> Evidence:
    return Evidence(
        size_bytes=size_bytes, dtype="fp32", default="direct", default_us=2000.0, chosen_us=2000.0 / ratio, ratio=ratio,
        low=ratio * 0.98, high=ratio * 1.02, interval_of="launches", pairs=10, p=0.01, apparent=1.0, candidates=3,
        run="r", verdict=verdict,
    )  # fmt: skip


def said(found: Answer) -> tuple[str, str]:
    assert json.loads(json.dumps(found.as_dict()))["answer"]["sentence"] == str(found)
    return str(found), found.next


def test_a_tuning_says_what_was_confirmed_and_what_to_do() -> None:
    proofs = [evidence(4096, 1.2), evidence(8192, 1.5), evidence(16384, 1.0, "default kept: slower")]
    tuned_to = profile(choice("all_to_all", "2d_intra_first", 0, 9000, evidence=proofs[:2]),
                       choice("all_to_all", "direct", 9001, evidence=proofs[2:]), nodes=2,
                       ranks_per_node=2)  # fmt: skip
    found = tuned.answer(tuned_to, USE, "the profile saves 3 ms")
    assert said(found) == (
        "gloo, 2 nodes x 2 ranks: all_to_all: 2d_intra_first is faster than direct from 4 KiB to 8 KiB (1.33 ms to "
        "1.67 ms): 1.20x to 1.50x [1.18-1.53], the default is kept at 1 size; the profile saves 3 ms",
        "use it: commbench export p.json --format env",
    )
    assert found.as_dict()["answer"]["claims"][0]["than"] == "direct"


def test_a_tuning_that_proves_nothing_keeps_the_default() -> None:
    kept = profile(choice("all_to_all", "direct", evidence=[evidence(4096, 1.0, "default kept: nothing was faster")]),
                   fabric="declared on one machine")  # fmt: skip
    kept = replace(kept, command=["commbench", "tune", "quick", "budget=60s"])
    text, step = said(tuned.answer(kept, USE))
    assert "nothing is proven better than the default at 1 size (default kept: nothing was faster)" in text
    assert step == "keep the default: what may be gained is below 3 %"
    unsure = replace(evidence(4096, 1.0, "not confirmed"), high=1.2)
    kept = replace(kept, choices=[choice("all_to_all", "direct", evidence=[unsure])])
    assert said(tuned.answer(kept, USE))[1] == "keep the default, or search for longer: commbench tune quick budget=30m"


def straggler(ratio: float, launches: int) -> Straggler:
    values: dict[str, Any] = dict.fromkeys(("low", "high"), ratio) | {"interval_of": "launches", "other_way": None}
    return Straggler(
        kind="rank", name="rank 3", about={}, ratio=ratio, launches=launches, launches_slow=launches, chance=0.01,
        time_us={}, usual_us={}, messages=1, usual_messages=1, **values,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("launches", "named", "unclear", "sentence", "step"),
    [
        (6, 2.0, None, "rank 3 takes 2.00x [2.00-2.00] as long as its like, in 6 of 6 launches", "commbench doctor"),
        (6, None, None, "nothing stands out: none of 4 ranks and links takes 1.3x as long as its like", "repair"),
        (2, None, 1.9, "nothing is proven: rank 3 took 1.90x as long as its like, and 2 launches cannot", "launches=6"),
        (1, None, None, "one launch may have missed what comes and goes", "commbench sweep pairs launches=6"),
    ],
)
def test_stragglers(launches: int, named: float | None, unclear: float | None, sentence: str, step: str) -> None:
    part = Examined(
        row=None, what="", launches=launches, size_bytes=None, layout=Layout(2, 2), tests=4,
        stragglers=[straggler(named, launches)] if named else [],
        unclear=straggler(unclear, launches) if unclear else None,
    )  # fmt: skip
    text, last = said(slow.answer([part], [(part, one) for one in part.stragglers], 1.3, TYPED))
    assert sentence in text and last.endswith(step)
    part.to_pairs = "commbench sweep pairs transport=gloo nodes=2 ranks_per_node=2"
    _, last = said(slow.answer([part], [(part, one) for one in part.stragglers], 1.3, TYPED))
    assert last.endswith(part.to_pairs if step == "repair" else step)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_stragglers_fit_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    slowest = replace(straggler(2.0, 6), time_us={"inter": 252300.0}, usual_us={"inter": 83530.0}, other_way=1.0)
    part = Examined(
        row=None, what="24 cases over gloo, 4 nodes x 2 ranks, emulated, link=100mbit, slow_link=node2:3: each rank's "
        "own time", launches=6, size_bytes=None, layout=Layout(4, 2), tests=4, stragglers=[slowest],
        fabric="declared on one machine",
    )  # fmt: skip
    text = stragglers.text([part], [(part, slowest)], 1.3)
    assert max(map(len, text.splitlines())) <= columns
    assert "messages that no culprit touches" in " ".join(text.split())


@pytest.mark.parametrize(
    ("verdict", "rounds", "more", "controlled", "failed", "step"),
    [
        ("faster", 10, 0, True, [], "take the candidate"),
        ("faster", 7, 0, True, [], "confirm it with rounds=10"),
        ("slower", 10, 0, True, [], "keep the baseline"),
        ("no difference", 10, 40, True, [], "keep the baseline, or look for less with rounds=50"),
        ("no difference", 10, 0, True, [], "keep the baseline: nothing is to be gained"),
        ("not estimable", 2, None, True, [], "compare again with rounds=10"),
        ("not estimable", 10, 3, False, [], "find what changes by turns (commbench doctor), then compare again"),
        ("not estimable", 0, None, True, ["candidate"], "read the log of the candidate, repair it, compare again"),
    ],
)
def test_two_arms(verdict: str, rounds: int, more: int | None, controlled: bool, failed: list[str], step: str) -> None:
    given = arms.next_step(
        Verdict(verdict), rounds=rounds, more_rounds=more, controlled=controlled, failed=failed
    )  # fmt: skip
    assert given == step


def test_a_model_says_what_a_message_costs_and_how_far_to_believe_it() -> None:
    one: dict[str, Any] = {
        "text": "gloo", "form": {"name": "serial"}, "costs": {"alpha_inter_us": 12.0, "beta_inter_us_per_kib": 8.0},
        "intervals": {"alpha_inter_us": (11.0, 13.0), "beta_inter_us_per_kib": (7.5, 8.5)}, "spread": 0.05,
    }  # fmt: skip

    def of(**more: Any) -> Model:
        fit = object.__new__(fitted.Fitted)
        for name, value in {**one, "unknown": (), "mixed": (), "lacks": (), "r2": 0.99, **more}.items():
            object.__setattr__(fit, name, value)
        return Model({"gloo": fit})

    text, step = said(fitted.answer(of(), ["r1"], None))
    assert text == (
        "gloo: a message between nodes takes 12 us [11-13] and moves 0.128 GB/s [0.12-0.137], 95 % of new cases are "
        "within 10 % of it"
    )
    assert step == "keep it as a file: commbench model r1 --out costs.json"
    assert said(fitted.answer(of(spread=0.5), ["r1"], None))[1].endswith("commbench sweep calibration")
    assert said(fitted.answer(of(lacks=("pairs: single messages",)), ["r1"], None))[1] == (
        "measure what is missing: pairs: single messages; then fit all runs together: commbench sweep calibration"
    )
    text, _ = said(fitted.answer(of(r2=0.29, spread=0.5), ["r1"], None))
    assert text.endswith("gloo: the costs explain 29 % of what was measured: do not use them")
    assert "costs=c.json" in said(fitted.answer(of(), ["r1"], "c.json"))[1]
