"""Suspects: what could be slow, and which messages it would slow down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from commbench.layout import Layout

Cells = npt.NDArray[np.int64]  # of a matrix of n x n, row after row: sender x n + receiver
INTRA, INTER = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """Something that could be slow. `everywhere`: it is only to blame if all classes of link that it has are slow.

    `small`: not to be named where another culprit has a hand in it, in whatever direction that was named for: a rank
    that is slow to receive may be slow to send to some, and acknowledgements wait on a link that is slow one way only.
    """

    kind: str  # "rank", "node" or "link"
    name: str
    cells: Cells
    about: dict[str, Any]  # the same in numbers: ranks, nodes, direction
    reach: Cells  # in both directions
    everywhere: bool = False
    small: bool = False


def classes(layout: Layout) -> npt.NDArray[np.int64]:
    """Return the class of link of every cell, -1 where a rank would talk to itself."""
    node = np.arange(layout.ranks) // layout.ranks_per_node
    link_class = np.where(node[:, None] == node[None, :], INTRA, INTER)
    np.fill_diagonal(link_class, -1)
    return link_class.ravel().astype(np.int64)


def shared(layout: Layout) -> list[Suspect]:
    """Return all but single pairs. Of those with the same cells the first says it best: it claims the least."""
    n, m, nodes = layout.ranks, layout.ranks_per_node, layout.nodes
    of = classes(layout)
    src, dst = np.divmod(np.arange(n * n), n)
    src_node, dst_node = src // m, dst // m
    suspects: list[Suspect] = []

    def add(
        kind: str,
        name: str,
        cells: npt.NDArray[np.bool_],
        *,
        everywhere: bool = False,
        small: bool = False,
        **about: Any,
    ) -> None:
        if not (chosen := np.flatnonzero(cells & (of >= 0))).size:
            return
        rows, columns = np.divmod(chosen, n)
        suspects.append(
            Suspect(
                kind=kind,
                name=name,
                cells=chosen,
                about=about,
                everywhere=everywhere,
                small=small,
                reach=np.union1d(chosen, columns * n + rows),
            )
        )

    inter, intra = of == INTER, of == INTRA
    for a in range(nodes):
        for b in range(a + 1, nodes):
            there, back = (src_node == a) & (dst_node == b), (src_node == b) & (dst_node == a)
            add("link", f"the way from node {a} to node {b}", there, small=True, nodes=[a, b], direction="out")
            add("link", f"the way from node {b} to node {a}", back, small=True, nodes=[b, a], direction="out")
            add(
                "link",
                f"the way between node {a} and node {b}",
                there | back,
                small=True,
                nodes=[a, b],
                direction="both",
            )
    for words, suffix in (("rank {}'s links inside its node", "intra"), ("rank {}'s link to other nodes", "inter")):
        within = intra if suffix == "intra" else inter
        if nodes == 1 or m == 1:  # it would be all that the rank has
            continue
        for rank in range(n):
            for direction, name, cells in _directions(words.format(rank), src == rank, dst == rank):
                add("link", name, cells & within, ranks=[rank], direction=direction)
    for node in range(nodes) if nodes > 1 else ():
        name = f"node {node}'s link" + (f", or its only rank {node}" if m == 1 else "")
        for direction, full, cells in _directions(name, src_node == node, dst_node == node):
            add("link", full, cells & inter, nodes=[node], direction=direction)
    for rank in range(n):
        where = f"rank {rank}" + (f" (node {rank // m})" if nodes > 1 else "")
        for direction, name, cells in _directions(where, src == rank, dst == rank, ("sending", "receiving")):
            add("rank", name, cells, everywhere=True, ranks=[rank], direction=direction)
    for node in range(nodes) if nodes > 1 and m > 1 else ():
        add("node", f"all of node {node}", (src_node == node) | (dst_node == node), everywhere=True, nodes=[node],
            direction="both")  # fmt: skip
    return suspects


def single(layout: Layout, wanted: Sequence[int]) -> Iterator[Suspect]:
    """Yield the links between two ranks of which a cell is in `wanted`: each direction, and both together."""
    n = layout.ranks
    for a, b in sorted({(min(divmod(cell, n)), max(divmod(cell, n))) for cell in wanted}):
        there, back = a * n + b, b * n + a
        for name, cells, ranks, direction in (
            (f"the link from rank {a} to rank {b}", [there], [a, b], "out"),
            (f"the link from rank {b} to rank {a}", [back], [b, a], "out"),
            (f"the link between rank {a} and rank {b}", [there, back], [a, b], "both"),
        ):
            about = {"ranks": ranks, "direction": direction}
            yield Suspect(
                kind="link", name=name, cells=np.array(cells), about=about, small=True, reach=np.array([there, back])
            )


def count(layout: Layout) -> int:
    """Return how many suspects there are: so many chances to name one by accident."""
    return len(shared(layout)) + 3 * layout.ranks * (layout.ranks - 1) // 2


def _directions(
    name: str, leaving: npt.NDArray[np.bool_], arriving: npt.NDArray[np.bool_], words: Sequence[str] = ("out", "in")
) -> Iterator[tuple[str, str, npt.NDArray[np.bool_]]]:
    """Yield (direction, name, cells): out, in, and both."""
    yield "out", f"{name}, {words[0]}", leaving
    yield "in", f"{name}, {words[1]}", arriving
    yield "both", name, leaving | arriving
