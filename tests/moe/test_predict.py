"""Predictions of schedules equal closed formulas where the model's costs are simple, and name the right winner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from commbench.cost_model import Model
from commbench.cost_model.costs import Fitted, Scales
from commbench.cost_model.forms import Form
from commbench.cost_model.skew import Skews
from commbench.errors import UsageError
from commbench.layout import Layout
from moe_ref import schedules
from moe_ref.schedules import Shape
from moe_ref.schedules.predict import crossing, fastest, predict

LAYOUT = Layout(2, 4)  # e = 2 groups of t = 4
SHAPE = Shape(T=512, D=256, E=8, K=2, C=128, W=8, tp=4, gate_bytes=8192)
S = 1024  # KiB: E C D 4
A_I, B_I, A_E, B_E = 10.0, 0.5, 100.0, 8.0  # microseconds per message, and per KiB, inside of nodes and between


def model_of(alpha_inter: float = A_E, beta_inter: float = B_E, **more: Any) -> Model:
    """ParallelDims with links of their own, and nothing else costs anything."""
    costs = {"step_us": 0.0, "alpha_intra_us": A_I, "beta_intra_us_per_kib": B_I, "alpha_inter_us": alpha_inter,
             "beta_inter_us_per_kib": beta_inter}  # fmt: skip
    values: dict[str, Any] = {
        "text": "made up", "form": Form("rank"), "costs": costs, "intervals": {},
        "replicates": [list(costs.values())] * 2, "unknown": (), "mixed": (),
        "r2": 1.0, "r2_by_link": {}, "r2_possible": None, "spread": 0.05, "left_out": {},
        "scales": Scales(size_bytes=1 << 20, message_bytes=1 << 20, ranks=8), "skews": Skews(), "observations": 9,
        "points": 9, **more,
    }  # fmt: skip
    return Model({"one": Fitted(**values)})


def time_us(name: str, model: Model | None = None, shape: Shape = SHAPE, **params: Any) -> float:
    return predict(schedules.get(name, **params), shape, model or model_of(), LAYOUT).time_us


def ring_us(kib: float, rounds: int = 3) -> float:
    """Of a buffer of so many KiB, in a group of four."""
    return rounds * (A_I + B_I * kib / 4)


def test_duplicate_is_its_formula() -> None:
    exchange = A_E + B_E * S / 2
    assert time_us("tensor_parallel", tp_tokens="duplicate") == pytest.approx(4 * exchange + 2 * ring_us(S, 6))


def test_drop_is_its_formula() -> None:
    exchange = A_E + B_E * S / 2 / 4
    there, back = exchange + ring_us(S / 2), ring_us(S) + exchange + ring_us(S)
    assert time_us("tensor_parallel", tp_tokens="drop") == pytest.approx(2 * (there + back))
    without = replace(SHAPE, input_grad=False)
    assert time_us("tensor_parallel", shape=without, tp_tokens="drop") == pytest.approx(2 * there + back)


@pytest.mark.parametrize("chunks", [2, 4, 8])
@pytest.mark.parametrize("beta_inter", [0.01, 8.0])
def test_chunks_hide_the_shorter_of_exchange_and_gather(chunks: int, beta_inter: float) -> None:
    """K max(a, b) + min(a, b) on the way there. Back: no shorter than either link is busy."""
    a, b = A_E + beta_inter * S / 8 / chunks, ring_us(S / 2 / chunks)
    there = chunks * max(a, b) + min(a, b)
    both = ring_us(S / chunks)  # to sum, and to gather
    back = 2 * both + a + (chunks - 1) * max(2 * both, a)
    found = time_us("tensor_parallel", model_of(beta_inter=beta_inter), tp_tokens="drop_pipelined", chunks=chunks)
    assert 2 * (there + max(chunks * a + 2 * both, 2 * chunks * both)) <= found * (1 + 1e-9)
    assert found <= 2 * (there + back) * (1 + 1e-9)


def test_parm_is_its_formula() -> None:
    """A row goes to all four ranks of the other group, and to three of the own one; both links work at once."""
    exchange = max(4 * (A_E + B_E * S / 8), 3 * (A_I + B_I * S / 8))
    assert time_us("parm_s2", chunks=1) == pytest.approx(4 * exchange + 2 * ring_us(S))
    slices = replace(SHAPE, C=32)
    tokens = ring_us(512)
    assert time_us("parm_s1", shape=slices) == pytest.approx(4 * exchange + 2 * tokens + ring_us(8, 6))
    piece = max(4 * (A_E + B_E * S / 16), 3 * (A_I + B_I * S / 16))
    beside = time_us("parm_s2", chunks=2)
    assert beside < 2 * exchange + 4 * piece + 2 * ring_us(S)
    assert beside >= 2 * exchange + 4 * piece + 2 * ring_us(S / 2)


def test_sequential_is_its_formula() -> None:
    """Of a layer without tensor parallelism, on the same links."""
    exchange = max(4 * (A_E + B_E * S / 8), 3 * (A_I + B_I * S / 8))
    assert time_us("sequential", shape=replace(SHAPE, tp=1)) == pytest.approx(4 * exchange)


def test_what_crosses_which_links() -> None:
    """Between groups: each of 8 ranks half of its buffer, four times; with drop a fourth of it."""
    made = {way: crossing(schedules.get("tensor_parallel", tp_tokens=way), SHAPE, LAYOUT)
            for way in ("duplicate", "drop", "drop_pipelined", "profile")}  # fmt: skip
    assert [found["inter"] for found in made.values()] == [16 << 20, 4 << 20, 4 << 20, 4 << 20]
    assert made["duplicate"]["intra"] == 2 * 8 * 6 * (1 << 18), "two rings of sums"
    parm = crossing(schedules.get("parm_s2"), SHAPE, LAYOUT)
    assert parm == {"inter": 16 << 20, "intra": 4 * 8 * 3 * (1 << 17) + 2 * 8 * 3 * (1 << 18)}


def test_the_winner_depends_on_the_links() -> None:
    names = [("tensor_parallel", {"tp_tokens": way}) for way in ("duplicate", "drop")]
    made = [schedules.get(name, **params) for name, params in names]
    assert str(fastest(made, SHAPE, model_of(), LAYOUT)).endswith("drop")
    assert str(fastest(made, SHAPE, model_of(0.0, 0.0), LAYOUT)).endswith("duplicate"), "free links"
    late = {str(made[1]): 1e6}
    assert str(fastest(made, SHAPE, model_of(), LAYOUT, compute_us=late)).endswith("duplicate"), "slow to compute"


def test_what_is_said_of_a_prediction() -> None:
    found = predict(schedules.get("parm_s1"), SHAPE, model_of(), LAYOUT, compute_us=500.0)
    assert found.compute_us == 500.0
    assert found.time_us == pytest.approx(found.forward_us + found.backward_us + 500.0)
    assert found.low_us < found.time_us < found.high_us
    assert found.backward_us > found.forward_us, "the gate's gradient"


def test_the_profiles_way_is_commbenchs_default() -> None:
    there = A_E + B_E * S / 8 + 3 * (A_I + B_I * S / 8)
    back = ring_us(S, 6) + there
    assert time_us("tensor_parallel") == pytest.approx(2 * (there + back))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": Model({})}, "a model of 0 settings"),
        (
            {"model": model_of(unknown=("beta_inter_us_per_kib",))},
            "nothing that the model was fitted to has beta_inter",
        ),
        ({"layout": Layout(1, 4)}, "layout 1x4 of 4 ranks for a shape of 8"),
        ({"schedule": schedules.get("pipelined")}, "schedule pipelined computes beside its exchanges"),
        ({"schedule": schedules.get("sequential"), "shape": replace(SHAPE, C=None)}, "what all_to_allv sends"),
    ],
)
def test_what_cannot_be_meant(change: dict[str, Any], words: str) -> None:
    given = {"schedule": schedules.get("parm_s1"), "shape": SHAPE, "model": model_of(), "layout": LAYOUT, **change}
    with pytest.raises(UsageError, match=words):
        predict(**given)
