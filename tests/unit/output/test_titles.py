"""Titles of pictures say what was found: of A/Bs, of two runs, of trainings, of traces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from commbench.analysis.compare import CaseComparison
from commbench.output.answer import arms, compared, traced, trained
from commbench.record.exchanges import exchanges
from commbench.stats import Verdict
from tests.support import traces


@pytest.mark.parametrize(
    ("verdict", "ratio", "rounds", "failed", "title"),
    [
        ("faster", (1.15, 1.14, 1.16), 10, [], "Candidate better: 1.15x [1.14-1.16] in throughput"),
        ("slower", (0.8, 0.79, 0.82), 10, [], "Candidate worse: 0.80x [0.79-0.82] in throughput"),
        ("no difference", (0.97, 0.905, 1.029), 10, [],
         "No difference is proven: candidate 0.970x [0.905-1.029] in throughput"),
        ("not estimable", (1.2, None, None), 1, [],
         "Nothing is proven: 1 round, 6 are needed; candidate 1.20x in throughput"),
        ("not estimable", (1.2, 1.1, 1.3), 8, [],
         "No answer: launches of one arm differ as if they were two; candidate 1.20x [1.10-1.30] in throughput"),
        ("not estimable", (1.2, 1.1, 1.3), 8, ["candidate"], "No answer: the candidate failed"),
    ],
)  # fmt: skip
def test_of_two_arms(verdict: str, ratio: tuple[Any, ...], rounds: int, failed: list[str], title: str) -> None:
    assert arms.title(Verdict(verdict), *ratio, rounds=rounds, what="throughput", failed=failed) == title


def comparison(label: str, size_bytes: int, ratio: float) -> CaseComparison:
    return CaseComparison(
        label=label, set_up="all_to_all over gloo", size_bytes=size_bytes, before_us=100.0 * ratio, after_us=100.0,
        ratio=ratio, low=ratio * 0.98, high=ratio * 1.02, interval_of="launches", launches=(8, 8), p=0.001,
    )  # fmt: skip


def test_of_two_runs() -> None:
    slower = [comparison("direct", size, 0.8) for size in (1024, 4096)]
    faster = comparison("bruck", 2**20, 1.5)
    assert compared.title(slower) == "Second run: direct slower from 1 KiB to 4 KiB (1.25x [1.23-1.28])"
    assert compared.title([*slower, faster]) == (
        "Second run: direct slower from 1 KiB to 4 KiB (1.25x [1.23-1.28]); bruck faster at 1 MiB (1.50x [1.47-1.53])"
    )
    many = [comparison(f"direct p={n}", 1024, 0.8 - n / 100) for n in range(5)]
    assert compared.title([*many, faster]) == "Second run: of 6 cases slower in 5 (1.25x to 1.32x), faster in 1 (1.50x)"
    same = replace(faster, ratio=1.0, low=0.99, high=1.01)
    assert compared.title([same]) == "No difference is proven in 1 case: ratios are between 0.990x and 1.010x"


def test_of_trainings() -> None:
    assert trained.of_losses(11.44, 3.163, 200, 3.142) == (
        "Loss falls: 11.4 to 3.16 bits a byte in 200 steps; 3.14 on text that it does not learn from"
    )
    assert trained.of_losses(3.0, 3.0, 1, None) == "Loss does not fall: 3 to 3 bits a byte in 1 step"
    assert trained.of_several_losses([3.001, 3.002], 30) == ("The same loss: 3 bits a byte at step 30, which all have")
    assert trained.of_several_losses([3.5, 3.0], 30) == ("Loss 3 to 3.5 bits a byte at step 30, which all have")
    assert trained.of_throughputs({"a": 18266.0}, 36.84) == "18266 tokens a second, 36.8 % of peak"
    assert trained.of_throughputs({"a": 100.0, "b": 150.0}, None) == (
        "b has 1.50x the throughput of a; one launch each: nothing is proven"
    )
    assert trained.of_throughputs({"a": 100.0, "b": 150.0, "c": 120.0}, None).startswith(
        "b has 1.25x to 1.50x the throughput of the others"
    )
    assert trained.of_breakdowns([{"experts": 35.2, "a2a": 2.4, "ffn": 16.0}]) == (
        "Of a step 35 % is experts and 2 % is all-to-all"
    )
    assert trained.of_breakdowns([{"ffn": 35.0}, {"ffn": 40.0}]) == "Of a step 35 to 40 % is FFN"
    assert trained.of_breakdowns([{"a2a": 60.0, "experts": 20.0}]) == "Of a step 60 % is all-to-all"


def test_of_a_trace() -> None:
    trace = traces.planted()
    assert traced.sentences(trace, exchanges(trace))[0] == (
        "a faster all-to-all can save 1 ms of a step of 50 ms at the most (2 %)"
    )
