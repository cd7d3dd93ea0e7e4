"""What a sweep says last, situation by situation; winners that were planted are named, equal arms are not."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench.analysis import ratios
from commbench.analysis.ratios import Speedup
from commbench.analysis.summary import Samples
from commbench.output import parquet
from commbench.output.answer.sweep import answer, picture_title
from commbench.records import Case, Row, Status
from commbench.run_folder import RunFolder
from tests.support.fake_runs import META, Rule, measured, planned, rows_of

TYPED = ["commbench", "sweep", "quick", "algorithm=direct,bruck", "launches=2"]
ABOUT: dict[str, Any] = {**META, "command": TYPED, "folder": "results/r1"}
TYPED_WITHOUT = "commbench sweep quick launches=2 "
AGAIN = "commbench sweep quick algorithm=direct,bruck "
TUNE = "commbench tune quick algorithm=direct,bruck launches=2"
SIZES = ("sizes.min=1K", "sizes.max=1M", "sizes.factor=4")  # six
Made = tuple[list[Row], dict[str, Speedup]]


def of(rule: Rule, *words: str, noise: float = 0.005, ranks: int = 2, nodes: int = 1, pairs: int = 99) -> Made:
    """Rows of so many launches, of which `pairs` measured both arms."""
    cases = planned(f"nodes={nodes}", f"ranks_per_node={ranks}", "algorithm=direct,bruck", *SIZES, *words)
    found = measured(cases, rule, noise=noise)
    rows = rows_of(cases, found, Samples(RunFolder(Path("/nowhere"))))
    both = [m for m in found if m.launch < pairs]
    return rows, ratios.compare(cases, both, lambda measurement: np.empty(0))


def times(bruck: float, upto: int = 2**30, since: int = 0) -> Rule:
    """A rule by which bruck takes `bruck` times as long at sizes of a range."""
    return lambda case: 100.0 * (bruck if case.algorithm == "bruck" and since <= case.size_bytes <= upto else 1.0)


def said(made: Made, about: dict[str, Any] = ABOUT) -> tuple[str, str]:
    found = answer(*made, about)
    return str(found), found.next


def test_clear() -> None:
    text, step = said(of(times(0.5, upto=16384), "launches=8"))
    assert "bruck is fastest from 1 KiB to 16 KiB (" in text and "nothing is proven at 3 other sizes" in text
    assert "looks better" not in text, "one candidate was not picked from several"
    assert step == f"confirm it in fresh launches, for a profile: {TUNE}"


def test_the_best_of_several_says_so() -> None:
    rule = {"direct": 100.0, "bruck": 60.0, "pairwise": 61.0}
    text, _ = said(of(lambda case: rule[case.algorithm], "algorithm=direct,bruck,pairwise", "launches=8", noise=0.03))
    assert "is faster than direct from 1 KiB to 1 MiB" in text and "fastest" not in text
    assert "the best of 2 was picked from these launches, so it looks better than it is" in text


def test_the_default_is_fastest() -> None:
    text, step = said(of(times(1.5), "launches=8"))
    assert "direct is fastest from 1 KiB to 1 MiB" in text and "as fast as bruck" in text
    assert step == "keep the default: it is the fastest"


def test_tie() -> None:
    text, step = said(of(times(1.0), "launches=8"))
    assert "nothing is proven fastest: bruck against direct is between 0.9" in text
    assert step == "keep the default: what may be gained is too little"
    text, step = said(of(times(1.0), "launches=8", noise=0.2))
    assert "nothing is proven fastest" in text
    assert step == f"measure longer: {AGAIN}launches=16 cap=1"


def test_too_few_launches() -> None:
    text, step = said(of(times(0.5), "launches=6", pairs=2))
    assert text.endswith("nothing is proven: 2 launches, 6 are needed for a verdict: launches=6")
    assert step == f"measure more launches: {AGAIN}launches=6"
    joined = {**ABOUT, "joined": "mpiexec"}
    step = said(of(times(0.5), "launches=6", pairs=2), joined)[1]
    assert step == f"measure more launches, started by the same launcher: {AGAIN}launches=6"


def test_all_failed() -> None:
    rows = [dataclasses.replace(row, status=Status.TIMEOUT, reason="no rank answers")
            for row in of(times(1.0), "launches=6")[0]]  # fmt: skip
    text, step = said((rows, {}))
    assert text == "no case has numbers; 12 of 12 cases failed (12 timeout): no rank answers"
    assert step.endswith("measure the failed cases again: commbench sweep --resume results/r1 --retry-failed")
    skipped = [dataclasses.replace(row, status=Status.SKIPPED, reason="no GPU") for row in rows]
    assert said((skipped, {})) == (
        "no case has numbers; 12 cases skipped: no GPU", "choose what can run here: commbench recipes"
    )  # fmt: skip


def test_one_case() -> None:
    rows, _ = of(times(1.0), "algorithm=direct", "launches=6", "sizes.max=1K")
    text, step = said((rows, {}))
    assert text.startswith("all_to_all over scripted, 1 node x 2 ranks: direct takes ") and " us [" in text
    assert " at 1 KiB, busbw 0.0" in text
    assert step == f"compare algorithms: {TYPED_WITHOUT}algorithm=direct,pairwise,bruck", "those that can run there"
    few = [dataclasses.replace(row, launches=2) for row in rows]
    assert said((few, {}))[1].endswith("algorithm=direct,pairwise,bruck launches=6")


def test_algorithms_to_compare_are_those_that_can_run() -> None:
    rows, _ = of(times(1.0), "algorithm=direct", "launches=12", "sizes.max=1K", nodes=2)
    typed = {**ABOUT, "command": ["commbench", "sweep", "quick", "algorithm=direct", "launches=12"]}
    names = "direct,pairwise,bruck,2d_intra_first,2d_inter_first,2d_pipelined"
    assert said((rows, {}), typed)[1].endswith(f" launches=12 algorithm={names}"), "12 are not lowered to 6"
    symmetric = [dataclasses.replace(row, transport="nccl", buffers="symmetric", nodes=1) for row in rows]
    assert said((symmetric, {}), typed)[1].endswith("=direct,pairwise,bruck,symm_store,symm_copy_engine")


def test_one_algorithm_alone_is_kept_for_a_later_run() -> None:
    rows, _ = of(times(1.0), "collective=broadcast", "algorithm=direct", "launches=6", "sizes.max=1K")
    later = "commbench compare results/r1 results/latest"
    assert said((rows, {}))[1] == f"keep it, and compare a later run with it: {later}"
    assert said((rows, {}), {**ABOUT, "joined": "mpiexec"})[1].endswith(f"with it: {later}"), "no launcher compares"


@pytest.mark.parametrize("launches", [1, 6, 12])
def test_pairs_are_for_stragglers(launches: int) -> None:
    rows, _ = of(times(1.0), "collective=pairs", "algorithm=direct", "launches=6", "sizes.max=1K", "round=all", ranks=4)
    assert (
        said(([dataclasses.replace(row, launches=launches) for row in rows], {}))[1]
        == "name what is slow: commbench stragglers results/r1"
    )


def test_a_gain_that_no_tuning_takes() -> None:
    text, step = said(of(times(1 / 1.015), "launches=12", noise=0.001))
    assert "bruck is fastest" in text
    assert step == "what may be gained is below 3 %: keep direct"
    assert said(of(times(1 / 1.06), "launches=12", noise=0.001))[1].endswith(TUNE)


def test_mixed_transports() -> None:
    rows, compared = of(times(0.5), "launches=8")
    other = [dataclasses.replace(row, transport="mpi", case_id=f"{row.case_id}m") for row in rows]
    both = compared | {f"{name}m": ratio for name, ratio in compared.items()}
    sentences = answer([*rows, *other], both, ABOUT).sentences
    assert [text.partition(",")[0] for text in sentences] == ["all_to_all over scripted", "all_to_all over mpi"]


def test_declared_nodes() -> None:
    text, step = said(of(times(0.5), "launches=8", nodes=2, ranks=1))
    assert "2 nodes x 1 ranks, declared on one machine: bruck is fastest" in text
    assert text.endswith("nodes are declared on one machine: nothing here is about your network")
    assert step == f"confirm it in fresh launches, for a profile: {TUNE}", "a scripted network has no machines"
    rows, compared = of(times(0.5), "launches=8", nodes=2, ranks=1)
    launcher = "measure it between machines: the same command under srun, mpiexec or torchrun (docs/guide/sweep.md)"
    over = [dataclasses.replace(row, transport="gloo") for row in rows]
    assert said((over, compared))[1] == f"{launcher}, or emulate them: {AGAIN}launches=2 fabric=emulated"
    over = [dataclasses.replace(row, transport="nccl") for row in rows]
    assert said((over, compared))[1] == launcher, "NCCL does not run on an emulated fabric"


def test_emulated() -> None:
    rows, compared = of(times(0.5), "launches=8", nodes=2, ranks=1)
    rows = [dataclasses.replace(row, fabric="emulated", link="1gbit", spines=1) for row in rows]
    text, step = said((rows, compared))
    assert "2 nodes x 1 ranks, emulated: 1gbit links: bruck is fastest" in text and "declared" not in text
    assert step.endswith(TUNE)


def test_interrupted() -> None:
    rows, compared = of(times(0.5), "launches=8")
    text, step = said((rows, compared), {**ABOUT, "planned": 20})
    assert "bruck is fastest" in text and text.endswith("partial: 12 of 20 cases finished")
    assert step == "go on: commbench sweep --resume results/r1"


def test_what_was_typed_by_nobody_is_not_handed_on() -> None:
    typed = [*TYPED, "x=\x1b[2J"]
    assert said(of(times(0.5), "launches=6", pairs=2), {**ABOUT, "command": typed})[1] == "measure more launches"
    quoted = said(of(times(0.5), "launches=6", pairs=2), {**ABOUT, "command": [*TYPED, "env.X=$(reboot)"]})[1]
    assert quoted.endswith("algorithm=direct,bruck 'env.X=$(reboot)' launches=6")


PLANTED = list(itertools.product((1.3, 1.5, 2.0, 3.0, 1.2), ((1024, 16384), (65536, 2**20))))


@pytest.mark.parametrize(("gain", "sizes"), PLANTED)
def test_ten_planted_winners_are_named(gain: float, sizes: tuple[int, int]) -> None:
    first, last = sizes
    found = answer(*of(times(1 / gain, since=first, upto=last), "launches=10", noise=0.01), ABOUT)
    (claim,) = found.claims
    assert (claim.faster, claim.than, claim.fastest, claim.is_default) == ("bruck", "direct", True, False)
    assert (min(claim.sizes), max(claim.sizes)) == sizes
    factors = [proof.factor for proof in claim.proofs]
    assert gain / 1.05 < min(factors) and max(factors) < gain * 1.05
    assert claim.low is not None and claim.high is not None and claim.low <= gain <= claim.high
    facts = found.as_dict()["answer"]["claims"][0]
    assert (facts["algorithm"], facts["min_bytes"], facts["max_bytes"]) == ("bruck", first, last)


def test_nothing_is_proven_of_ten_pairs_of_equal_arms() -> None:
    """Verdicts of a run are corrected together: any of the ten would be false in 5 % of such runs."""
    made = of(times(1.0), "sizes.max=512K", "sizes.factor=2", "launches=10", noise=0.05)
    assert sum(ratio.verdict is not None for ratio in made[1].values()) == 10
    found = answer(*made, ABOUT)
    assert not found.claims and "nothing is proven fastest" in str(found)


def test_pictures_have_the_answer_as_title() -> None:
    def title(made: Made) -> str:
        return picture_title(parquet.frame(made[0], "r1", made[1]).to_dict("records"))

    def rule(case: Case) -> float:
        return times(0.5, upto=16384)(case) * (1.5 if case.algorithm == "bruck" and case.size_bytes > 65536 else 1.0)

    text = title(of(rule, "launches=8"))
    assert text.startswith("1 KiB to 16 KiB: bruck ") and "x direct; 256 KiB to 1 MiB: direct " in text
    assert title(of(times(1.0), "launches=8")) == "nothing is proven faster"
    few = title(of(times(0.5), "launches=6", pairs=2))
    assert few == "nothing is proven faster: 2 launches, 6 are needed"
    assert title((of(times(1.0), "launches=6")[0], {})) == ""


def test_payloads_are_compared_in_one_sentence_and_no_tuning_is_told() -> None:
    words = ("algorithm=direct", "payload=none,int8", "sizes.list=64K", "launches=8")
    cases = planned("nodes=1", "ranks_per_node=2", *words)
    found = measured(cases, lambda case: 60.0 if case.arguments else 100.0)
    rows = rows_of(cases, found, Samples(RunFolder(Path("/nowhere"))))
    text, step = said((rows, ratios.compare(cases, found, lambda measurement: np.empty(0))))
    assert "all_to_all over scripted, 1 node x 2 ranks: payload=int8 is fastest at 64 KiB" in text
    assert "as fast as payload=none" in text and text.count("payload=int8") == 1
    assert step.endswith("commbench train tiny payload=int8")
