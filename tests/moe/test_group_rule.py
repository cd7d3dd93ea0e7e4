"""EPS-MoE's rule for groups of experts: what it predicts, what it refuses, and that it stays with one."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from commbench.errors import UsageError
from moe_ref.schedules.group_rule import GroupTimes, choose, pass_us


def ideal(exchange_us: float, products_us: float, numbers: tuple[int, ...] = (1, 2, 4, 8)) -> dict[int, GroupTimes]:
    """Times that divide evenly."""
    return {groups: GroupTimes(exchange_us / groups, products_us / groups) for groups in numbers}


def by_hand(groups: int, times: GroupTimes) -> float:
    """Walk through the pass event by event: one link, one device, ways there before ways back."""
    link = device = 0.0
    arrived = []
    for _ in range(groups):
        link += times.exchange_us
        arrived.append(link)
    for there in arrived:
        device = max(device, there) + times.products_us
        link = max(link, device) + times.exchange_us
    return link


@pytest.mark.parametrize("groups", [1, 2, 3, 8])
@pytest.mark.parametrize(("exchange", "products"), [(10.0, 100.0), (100.0, 10.0), (40.0, 40.0), (0.0, 5.0)])
def test_a_pass_is_as_long_as_its_events(groups: int, exchange: float, products: float) -> None:
    times = GroupTimes(exchange, products)
    assert pass_us(groups, times) == pytest.approx(by_hand(groups, times))


def test_groups_are_taken_where_they_hide_the_exchange() -> None:
    chosen = choose(ideal(100, 250))
    assert chosen.groups == 8 and chosen.pass_us[1] == 450 and chosen.pass_us[8] == pytest.approx(275)
    assert "1.64x predicted" in chosen.why


def test_products_that_lose_their_efficiency_are_left_out() -> None:
    times = ideal(100, 250)
    times[8] = GroupTimes(12.5, 40)  # 320 us in all, where one group takes 250
    assert choose(times).groups == 4
    times |= {groups: GroupTimes(100 / groups, 300 / groups) for groups in (2, 4)}
    assert choose(times).groups == 8, "what products lose is less than what they hide"
    chosen = choose(times, slack=0.1)
    assert chosen.groups == 1 and "products lose more than 10% in 2, 4, 8 groups" in chosen.why


def test_one_group_is_kept_where_nothing_is_won() -> None:
    """As at decode: weights are read, and an exchange takes its latency however few rows it has."""
    decode = {groups: GroupTimes(10, 400 / groups) for groups in (1, 2, 4)}
    assert choose(decode).groups == 1
    with pytest.raises(UsageError, match=r"times of \[2\] groups"):
        choose({2: GroupTimes(1, 1)})
