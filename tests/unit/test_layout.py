"""Groups of ranks: by a word, or by their ranks."""

from __future__ import annotations

import pytest

from commbench.errors import UsageError
from commbench.layout import Layout


@pytest.mark.parametrize(
    ("layout", "partition", "name"),
    [
        (Layout(2, 2), [[0, 1, 2, 3]], "world"),
        (Layout(2, 2), [[1, 3], [0, 2]], "rails"),
        (Layout(2, 2), [[0, 1], [2, 3]], "blocks:2"),
        (Layout(2, 2), [[1, 2], [0, 3]], "ranks:0,3;1,2"),
        (Layout(1, 6), [[0, 2, 4], [1, 3, 5]], "ranks:0,2,4;1,3,5"),
        (Layout(3, 2), [[0, 1, 2], [3, 4, 5]], "ranks:0,1,2;3,4,5"),  # blocks:3 would cut nodes
    ],
)
def test_groups_have_one_name_which_gives_them_back(layout: Layout, partition: list[list[int]], name: str) -> None:
    assert layout.name(partition) == name
    assert layout.partition(name) == sorted(partition)


@pytest.mark.parametrize(
    ("layout", "groups", "within"),
    [
        (Layout(2, 2), "ranks:0,3;1,2", Layout(2, 1)),
        (Layout(1, 6), "ranks:0,2,4;1,3,5", Layout(1, 3)),
        (Layout(2, 4), "ranks:0,2,4,6;1,3,5,7", Layout(2, 2)),
        (Layout(3, 2), "ranks:0,1,2;3,4,5", Layout(3, 1)),  # two ranks here and one there: each a node of its own
    ],
)
def test_the_layout_of_one_group(layout: Layout, groups: str, within: Layout) -> None:
    assert layout.unsupported(groups) == ""
    assert layout.within(groups) == within


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ("ranks:0,1", "rank 2 is in none of the groups, and each has to be in one"),
        ("ranks:0,1,2;3", "groups of 1 and of 3 ranks are not alike"),
        ("ranks:0,1;2,9", "groups have rank 9, and the ranks are 0 .. 3"),
    ],
)
def test_groups_that_do_not_share_the_ranks_out(groups: str, why: str) -> None:
    assert Layout(2, 2).unsupported(groups) == why


def test_groups_that_lie_differently_on_the_nodes() -> None:
    assert "groups are not alike" in Layout(2, 4).unsupported("ranks:0,1;2,4;3,5;6,7")


@pytest.mark.parametrize("groups", ["ranks:", "ranks:0,x;1", "ranks:0,,1", "ranks:0;0", "ranks:1234567;0", "blocks:0"])
def test_words_that_are_no_groups(groups: str) -> None:
    with pytest.raises(UsageError, match="groups is"):
        Layout(2, 2).partition(groups)
