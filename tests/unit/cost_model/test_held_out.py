"""Costs fitted to a calibration hold on layouts that no fit has seen: stored times of an emulated cluster.

`make bench ARGS="held_out OUT"` measured them, and measures them again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from commbench import cost_model
from commbench.cost_model import Model, Observation
from commbench.cost_model.costs import TCP_WAITS_US
from tests.support import held_out

ROWS = Path(__file__).parents[2] / "data/held_out/150mbit.json"


@pytest.fixture(scope="module")
def fitted() -> Model:
    return cost_model.fit(held_out.read(ROWS, ("2x2", "2x4", "4x2")))


@pytest.fixture(scope="module")
def unseen() -> list[Observation]:
    return held_out.read(ROWS, ("4x4", "3x5", "5x2", "8x2", "2x8"))


def test_layouts_that_no_fit_has_seen(fitted: Model, unseen: list[Observation]) -> None:
    said = held_out.judge(held_out.cells(fitted, unseen))
    assert said.cells == 15
    assert said.right >= 0.85 and said.right >= said.constant + 0.15, said
    assert said.regret <= 1.10 and said.median_error <= 0.10, said
    assert 0.85 <= said.coverage <= 0.99 and said.half_width <= 0.40, said


def test_what_tcp_sends_again_is_not_predicted(fitted: Model, unseen: list[Observation]) -> None:
    """All that takes far longer than TCP waits is refused, and hardly anything that does not."""
    asked = [item for item in unseen if held_out.took_us(item) > 2 * TCP_WAITS_US]
    assert len(asked) >= 5 and all(found is None for found in fitted.predictions([item.case for item in asked]))
    short = [item for item in unseen if held_out.took_us(item) < TCP_WAITS_US / 2]
    assert all(found is not None for found in fitted.predictions([item.case for item in short]))


def test_a_burst_is_what_the_fabric_declares(fitted: Model) -> None:
    ((_, setting),) = fitted.settings.items()
    packet = 65536 * 1.07 + 20000
    assert setting.costs["burst_us"] == pytest.approx(packet / (150e6 / 8) * 1e6, rel=1e-3)


def test_both_orders_of_2d_have_times_of_their_own(fitted: Model, unseen: list[Observation]) -> None:
    cases = {(str(o.case.setup.layout), o.case.size_bytes, o.case.algorithm): o.case for o in unseen}
    orders = [fitted.predict(cases["3x5", size, name]) for size in (3840, 32640)
              if ("3x5", size, "2d_intra_first") in cases for name in ("2d_intra_first", "2d_inter_first")]  # fmt: skip
    assert orders and len({found.time_us for found in orders if found}) == len(orders)
