"""Layout: which ranks share a node, and so which class of link a message takes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from commbench.errors import UsageError

LinkClass = Literal["intra", "inter", "host"]  # host: between a device and the memory of its host
LINK_CLASSES: tuple[LinkClass, ...] = ("intra", "inter")  # between ranks
LISTED = "ranks:"  # groups by the ranks of each
_MOST_DIGITS = 6  # of a rank


@dataclass(frozen=True, slots=True)
class Layout:
    """`nodes` nodes of `ranks_per_node` ranks; rank r is local rank `r % m` of node `r // m`.

    Two ranks of one node talk over an *intra* link, two of different nodes over an *inter* link. Ranks of equal
    local index on all nodes form a *rail*.
    """

    nodes: int
    ranks_per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def node(self, rank: int) -> int:
        return rank // self.ranks_per_node

    def local(self, rank: int) -> int:
        return rank % self.ranks_per_node

    def link(self, src: int, dst: int) -> LinkClass:
        return "intra" if self.node(src) == self.node(dst) else "inter"

    def node_groups(self) -> list[list[int]]:
        """The ranks of each node: `nodes` lists of `ranks_per_node` ranks."""
        m = self.ranks_per_node
        return [list(range(n * m, (n + 1) * m)) for n in range(self.nodes)]

    def rails(self) -> list[list[int]]:
        """The ranks of each rail: `ranks_per_node` lists of `nodes` ranks."""
        m = self.ranks_per_node
        return [list(range(local, self.ranks, m)) for local in range(m)]

    def partition(self, groups: str) -> list[list[int]]:
        """The ranks of each group of `groups`: `world`, `rails`, `blocks:K` (K consecutive ranks each), `ranks:..`."""
        if groups == "rails":
            return self.rails()
        if groups.startswith(LISTED):
            return listed_groups(groups)
        size = self.ranks if groups == "world" else block_size(groups)
        return [list(range(first, first + size)) for first in range(0, self.ranks, size)]

    def unsupported(self, groups: str) -> str:
        """Return in words why this layout has no such groups that are all alike; "" if it has."""
        if groups in ("world", "rails"):
            return ""
        if groups.startswith(LISTED):
            return self._unlike(listed_groups(groups))
        size, m = block_size(groups), self.ranks_per_node
        if self.ranks % size:
            return f"{groups}: {self.ranks} ranks do not divide into groups of {size}"
        if size % m and m % size:
            return f"{groups}: groups of {size} would cut nodes of {m} ranks unevenly"
        return ""

    def within(self, groups: str) -> Layout:
        """Return the layout of one group. Raises `ValueError` where this layout has no such groups."""
        if reason := self.unsupported(groups):
            raise ValueError(reason)
        if groups == "world":
            return self
        if groups == "rails":
            return Layout(self.nodes, 1)
        if groups.startswith(LISTED):
            return self._of_group(listed_groups(groups)[0])
        size, m = block_size(groups), self.ranks_per_node
        return Layout(size // m, m) if size % m == 0 else Layout(1, size)

    def name(self, partition: Sequence[Sequence[int]]) -> str:
        """Return the word for these groups: `world`, `rails`, `blocks:K`, or their ranks: `ranks:0,3;1,2`."""
        wanted = sorted(list(ranks) for ranks in partition)
        size = len(wanted[0])
        for word in ("world", "rails", f"blocks:{size}"):
            if not self.unsupported(word) and wanted == self.partition(word):
                return word
        return listed_name(wanted)

    def _unlike(self, partition: Sequence[Sequence[int]]) -> str:
        """Return in words why these groups do not share this layout out into groups that are all alike."""
        named = sorted(rank for ranks in partition for rank in ranks)
        if outside := [rank for rank in named if rank >= self.ranks]:
            return f"groups have rank {outside[0]}, and the ranks are 0 .. {self.ranks - 1}"
        if missing := sorted({*range(self.ranks)} - {*named}):
            return f"rank {missing[0]} is in none of the groups, and each has to be in one"
        if len({len(ranks) for ranks in partition}) > 1:
            return f"groups of {min(map(len, partition))} and of {max(map(len, partition))} ranks are not alike"
        layouts = [self._of_group(ranks) for ranks in partition]
        if odd := [layout for layout in layouts if layout != layouts[0]]:
            return f"groups are not alike: {layouts[0]} and {odd[0]}, as they lie on the nodes"
        return ""

    def _of_group(self, ranks: Sequence[int]) -> Layout:
        """Return the layout of some ranks: one rank a node where they do not lie in equal blocks on the nodes."""
        runs = [len(list(run)) for _, run in groupby(map(self.node, ranks))]
        blocks = len(runs) == len({*map(self.node, ranks)}) and len({*runs}) == 1
        return Layout(len(runs), runs[0]) if blocks else Layout(len(ranks), 1)

    def __str__(self) -> str:
        return f"{self.nodes}x{self.ranks_per_node}"


def listed_groups(groups: str) -> list[list[int]]:
    """Return the ranks of each group of `ranks:0,2;1,3`, ascending. Raises `UsageError` for anything else."""
    lists = [text.split(",") for text in groups.removeprefix(LISTED).split(";")]
    if not all(text.isdecimal() and len(text) <= _MOST_DIGITS for ranks in lists for text in ranks):
        raise _bad_groups(groups)
    partition = sorted(sorted(int(text) for text in ranks) for ranks in lists)
    named = sorted(rank for ranks in partition for rank in ranks)
    if twice := [rank for rank, again in pairwise(named) if rank == again]:
        raise UsageError(f"groups is {groups!r}: rank {twice[0]} is in it twice", hint="each rank is in one group")
    return partition


def block_size(groups: str) -> int:
    """K of `blocks:K`. Raises `UsageError` for anything else."""
    kind, _, text = groups.partition(":")
    if kind != "blocks" or not text.isdigit() or int(text) < 1:
        raise _bad_groups(groups)
    return int(text)


def listed_name(partition: Sequence[Sequence[int]]) -> str:
    """Return `ranks:0,2;1,3` for [[0, 2], [1, 3]]."""
    return LISTED + ";".join(",".join(map(str, ranks)) for ranks in partition)


def _bad_groups(groups: str) -> UsageError:
    return UsageError(
        f"groups is {textwrap.shorten(groups, 80)!r}",
        hint="world, rails, blocks:K with K ranks each (blocks:2), or the ranks of each (ranks:0,2;1,3)",
    )
