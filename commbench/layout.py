"""Layout: which ranks share a node, and so which class of link a message takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from commbench.errors import UsageError

LinkClass = Literal["intra", "inter"]
LINK_CLASSES: tuple[LinkClass, ...] = ("intra", "inter")


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
        """The ranks of each group of `groups`: `world`, `rails`, or `blocks:K`, K consecutive ranks each."""
        if groups == "rails":
            return self.rails()
        size = self.ranks if groups == "world" else block_size(groups)
        return [list(range(first, first + size)) for first in range(0, self.ranks, size)]

    def unsupported(self, groups: str) -> str:
        """Return in words why this layout has no such groups that are all alike; "" if it has."""
        if groups in ("world", "rails"):
            return ""
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
        size, m = block_size(groups), self.ranks_per_node
        return Layout(size // m, m) if size % m == 0 else Layout(1, size)

    def __str__(self) -> str:
        return f"{self.nodes}x{self.ranks_per_node}"


def block_size(groups: str) -> int:
    """K of `blocks:K`. Raises `UsageError` for anything else."""
    kind, _, text = groups.partition(":")
    if kind != "blocks" or not text.isdigit() or int(text) < 1:
        raise UsageError(f"groups is {groups!r}", hint="world, rails, or blocks:K with K ranks each, e.g. blocks:2")
    return int(text)
