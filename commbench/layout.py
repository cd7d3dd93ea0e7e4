"""Layout: which ranks share a node, and so which class of link a message takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

    def __str__(self) -> str:
        return f"{self.nodes}x{self.ranks_per_node}"
