"""The timing loop, on a clock whose times are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from commbench import algorithms
from commbench.layout import Layout
from commbench.measure.loop import BEAT_S, FEWEST_SAMPLES, Observer, Timing, measure
from commbench.records import Policy
from commbench.spec import Spec
from commbench.transports.scripted.transport import Scripted
from tests.conftest import scripted_ranks

QUIET = {"alpha_us": {"intra": 10.0, "inter": 10.0}, "gbps": {"intra": 1.0, "inter": 1.0}}


def timing(policy: dict[str, Any], *, mode: str = "isolated", script: dict[str, Any] | None = None, nodes: int = 1,
           size_bytes: int = 2048, observer: Observer | None = None) -> list[Timing]:  # fmt: skip
    values = {"warmup": 3, "iters": None, "samples_min": 10, "samples_max": 200, "precision": 0.02, "cap_s": 1e3}
    chosen = Policy(**{**values, "launches": 1, **policy})  # type: ignore[arg-type]
    layout = Layout(nodes, 2)
    spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=size_bytes, layout=layout)

    def rank(transport: Scripted) -> Timing:
        pairs = [(transport.world.empty(size_bytes), transport.world.empty(size_bytes))]
        bound = algorithms.get("all_to_all", "direct").prepare(transport.world, spec)
        return measure(transport, bound.bind(pairs), chosen, mode=mode, observer=observer or Observer())

    return scripted_ranks(nodes, 2, rank, script={**QUIET, **(script or {})})


def test_the_known_time_is_found() -> None:
    # alpha 10 us + 1024 B at 1 GB/s = 11.024 us, in both modes
    for mode in ("isolated", "pipelined"):
        for result in timing({}, mode=mode):
            assert result.time_us == pytest.approx(11.024)
            assert result.stop_reason == "precision"


def test_all_ranks_have_all_samples_and_decide_alike() -> None:
    first, *others = timing({}, script={"noise": 0.3, "jitter_us": 2.0}, nodes=2, size_bytes=4096)
    for other in others:
        assert np.array_equal(first.time_us, other.time_us)
        assert first.stop_reason == other.stop_reason
    assert first.time_us.shape[1] == 4
    assert np.array_equal(first.slowest_us, first.time_us.max(axis=1))


def test_iters_fixes_the_number_and_turns_the_adaptive_stop_off() -> None:
    (result, _) = timing({"iters": 7, "cap_s": 1e-9})
    assert result.time_us.shape == (7, 2) and result.stop_reason == "iters"


def test_noise_runs_into_the_most_samples() -> None:
    (result, _) = timing({"precision": 0.0001}, script={"noise": 0.5})
    assert result.time_us.shape[0] == 200 and result.stop_reason == "samples"


def test_more_noise_takes_more_samples() -> None:
    counts = [timing({"samples_max": 5000}, script={"noise": noise})[0].time_us.shape[0] for noise in (0.02, 0.2)]
    assert counts[0] < counts[1] < 5000


def test_the_cap_is_kept_within_one_batch() -> None:
    call_us = 11.024
    (result, _) = timing(
        {"precision": 1e-9, "samples_max": 100_000, "cap_s": 100 * call_us / 1e6}, script={"noise": 0.01}
    )
    assert result.stop_reason == "cap"
    assert 95 <= result.time_us.shape[0] + result.warmup_us.shape[0] <= 110


def test_slow_calls_still_get_the_fewest_samples_and_few_warm_ups() -> None:
    (result, _) = timing({"cap_s": 1e-6, "warmup": 50})
    assert result.time_us.shape[0] == FEWEST_SAMPLES
    assert result.warmup_us.shape[0] == 1, "warm-ups must not eat many times the cap"


def test_warm_ups_are_kept_apart() -> None:
    (result, _) = timing({"warmup": 4})
    assert result.warmup_us.shape == (4, 2)
    (result, _) = timing({"warmup": 0})
    assert result.warmup_us.shape[0] == 0


def test_pipelined_divides_by_its_calls() -> None:
    (result, _) = timing({"iters": 5}, mode="pipelined")
    assert result.calls_per_sample == 20 and result.time_us.shape[0] == 5
    # A call of 100 ms: two per sample, as 20 would take two seconds
    slow = {"alpha_us": {"intra": 1e5, "inter": 1e5}}
    (result, _) = timing({"iters": 3}, mode="pipelined", script=slow)
    assert result.calls_per_sample == 2
    assert result.time_us == pytest.approx(1e5 + 1.024)


def test_the_slowest_rank_is_the_headline() -> None:
    (result, _) = timing({"iters": 4}, script={"jitter_us": 5.0})
    assert (result.time_us[:, 0] != result.time_us[:, 1]).all()
    assert np.array_equal(result.slowest_us, np.maximum(result.time_us[:, 0], result.time_us[:, 1]))


class Beats(Observer):
    """Notes the virtual time of each batch's end, on whichever rank it is told."""

    def __init__(self) -> None:
        self.armed = 0
        self.beats = 0

    def arm(self) -> None:
        self.armed += 1

    def beat(self) -> None:
        self.beats += 1


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("mode", ["isolated", "pipelined"])
def test_slow_calls_are_heard_of_often(warmup: int, mode: str) -> None:
    """Calls of 4 s: every batch is one sample, however many were asked for, so no silence is longer than a sample."""
    slow = {"alpha_us": {"intra": 4e6, "inter": 4e6}}
    observer = Beats()
    (result, _) = timing({"warmup": warmup, "iters": 6}, mode=mode, script=slow, observer=observer)
    assert BEAT_S > 4
    batches = observer.beats / 2  # both ranks tell the same observer
    assert batches >= result.time_us.shape[0] + result.warmup_us.shape[0] - 1
    assert observer.armed == 2, "armed once on each rank, between warm-up and samples"


def test_skew_is_how_far_apart_ranks_leave_the_barrier() -> None:
    begins = np.array([[0.0, 3.0], [10.0, 11.0], [20.0, 27.0]])
    zeros = np.zeros((3, 2))
    result = Timing(zeros, zeros, zeros, begins, {}, 1, range(3), "iters", 1.0)
    assert result.skew_us == 3.0


def test_timed_calls_are_numbered_after_the_warm_ups() -> None:
    (result, _) = timing({"warmup": 4, "iters": 6})
    assert result.calls == range(4, 10)
    (result, _) = timing({"warmup": 4, "iters": 6}, mode="pipelined")
    assert result.calls == range(4, 124)
