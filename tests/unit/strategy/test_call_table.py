"""Collectives as they were measured, in place of what links' costs make of them; and gloo's trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench.errors import UsageError
from commbench.strategy import calls
from commbench.strategy.call_table import read_calls
from commbench.strategy.calls import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, Calls, PeerGroups
from commbench.strategy.draws import draw
from commbench.strategy.links import LinkTimes, link_times
from tests.unit.strategy.shapes import cluster


def row(collective: str, groups: str, size: int, kib: float, ms: float, **other: Any) -> dict[str, Any]:
    return {"collective": collective, "groups": groups, "group_size": size, "ranks": 8, "nodes": 2, "status": "ok",
            "size_bytes": int(1024 * kib), "time_us": 1e3 * ms, **other}  # fmt: skip


ROWS = [
    row("all_reduce", "blocks:4", 4, 64, 10), row("all_reduce", "blocks:4", 4, 256, 20),
    row("all_to_all", "world", 8, 64, 5), row("all_to_all", "world", 8, 64, 4), row("all_to_all", "rails", 2, 64, 7),
    row("all_gather", "ranks:0,2,4,6;1,3,5,7", 4, 64, 6), row("all_gather", "ranks:0,1,2;3,4,5", 3, 64, 1),
    row("all_gather", "world", 8, 64, 9, status="timeout", time_us=None), row("pairs", "world", 8, 64, 9),
]  # fmt: skip


def table_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "calls.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + json.dumps({"answer": {}}) + "\n")
    return path


def groups(size: int, per_node: int) -> PeerGroups:
    return PeerGroups(size=np.array([size]), per_node=np.array([per_node]))


def on(folder: Path) -> LinkTimes:
    there = cluster(2, 4)
    return link_times(there, draw(there, draws=300), table=read_calls(table_file(folder, ROWS)))


def middle_ms(links: LinkTimes, call: Calls) -> float:
    return float(links.us(call)[0, 0]) / 1e3


def test_rows_are_groups(tmp_path: Path) -> None:
    """Of each size the fastest algorithm; what failed, what is no such collective and uneven groups are no rows."""
    found = {(one.kind, one.size, one.per_node): list(one.times) for one in
             read_calls(table_file(tmp_path, ROWS)).groups}  # fmt: skip
    assert found == {(ALL_TO_ALL, 2, 1): [7e3], (ALL_TO_ALL, 8, 4): [4e3], (ALL_GATHER, 4, 2): [6e3],
                     (ALL_REDUCE, 4, 4): [10e3, 20e3]}  # fmt: skip


@pytest.mark.parametrize(("kib", "ms"), [(64, 10), (256, 20), (128, 200**0.5), (16, 10), (1024, 80)])
def test_a_group_that_was_measured_takes_what_it_took(kib: float, ms: float, tmp_path: Path) -> None:
    call = calls.ring(groups(4, 4), np.array([1024.0 * kib]), 2.0)
    assert middle_ms(on(tmp_path), call) == pytest.approx(ms)
    assert 1.05 < np.quantile(on(tmp_path).us(call), 0.95) / (1e3 * ms) < 1.3, "and is not sure"


def test_another_group_is_as_far_off_as_the_nearest(tmp_path: Path) -> None:
    links, nbytes = on(tmp_path), np.array([64 * 1024.0])
    plain = link_times(links.cluster, links.draws)
    for size, per_node, nearest in ((4, 4, None), (4, 2, (2, 1))):
        call = calls.all_to_all(groups(size, per_node), nbytes)
        known = middle_ms(plain, call)
        if nearest is not None:
            other = calls.all_to_all(groups(*nearest), nbytes)
            known *= middle_ms(links, other) / middle_ms(plain, other)
        assert middle_ms(links, call) == pytest.approx(known), "none on one node was measured"
    two = calls.two_hops(groups(8, 4), nbytes)
    assert middle_ms(links, two) == pytest.approx(middle_ms(plain, two)), "no collective that a sweep measures"


def test_trees_cross_nodes_with_half_of_their_messages() -> None:
    """Of 2 x 4: 4 of 7 messages of each tree in its last round, and one more before for three of four roots."""
    nbytes = np.array([1024.0])
    for size, per_node, times in ((8, 4, 4.25), (4, 2, 2.0), (2, 1, 1.0), (4, 4, 0.0)):
        call = calls.trees(groups(size, per_node), nbytes)
        assert call.loads[0, 0, 3] * call.rounds[0] * per_node == pytest.approx(times), (size, per_node)


@pytest.mark.parametrize(("rows", "said"), [
    ([], "has no all_to_all"),
    ([row("all_reduce", "world", 8, 64, -1)], "time_us is -1000"),
    ([row("all_reduce", "world", 8, 64, 1, nodes=None)], "nodes is None"),
])  # fmt: skip
def test_what_is_no_sweep_is_refused(rows: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_calls(table_file(tmp_path, rows))
    assert said in str(caught.value) and "commbench sweep calls" in caught.value.hint
