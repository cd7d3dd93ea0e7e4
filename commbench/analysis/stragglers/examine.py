"""Examining runs for slow ranks and links: each matrix of pairs, and each set-up of other sweeps, by itself."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from commbench.analysis import pair_matrices
from commbench.analysis.pair_matrices import Matrix
from commbench.analysis.stragglers import ranks, suspects
from commbench.analysis.stragglers.search import Search, Straggler
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.records import Row, Setup
from commbench.run_folder import RunFolder
from commbench.units import format_size


@dataclass(slots=True)
class Examined:
    """A matrix or a set-up that was examined by itself, and who stands out there."""

    row: Row | None  # of a matrix
    what: str  # in words, where it has no row
    launches: int
    size_bytes: int | None
    layout: Layout
    tests: int
    stragglers: list[Straggler]
    fabric: str = ""  # what is between the nodes, as in rows
    notes: list[str] = field(default_factory=list)
    to_pairs: str = ""  # what measures the links of this set-up, where nothing here has
    unclear: Straggler | None = None  # who would be named, were there launches enough
    matrix: Matrix | None = None


def examine(folders: Sequence[RunFolder], effect: float) -> list[Examined]:
    """Examine launches of several runs of the same set-up together. effect: how many times slower counts as slow.

    Raises `UsageError` for runs that cannot be judged.
    """
    if not effect > 1:
        raise UsageError(f"--effect is {effect}", hint="how many times slower counts as slow: above 1, e.g. 1.3")
    tables = pair_matrices.of_runs(folders)
    others = ranks.gather(item for folder in folders for item in pair_matrices.read_launches(folder))
    if not tables and not others:
        setup = next((item.case.setup for folder in folders for item in folder.plan()), None)
        raise UsageError(
            "these runs have nothing to judge ranks or links by",
            hint=f"measure pairs: {_to_pairs(setup)}; of other sweeps {ranks.FEWEST_RANKS} ranks are needed, all "
            "doing the same",
        )
    counts = [suspects.count(table.layout) for table in tables]
    tests = sum(counts) + sum(item.excess.shape[1] for item in others)
    parts = [
        _of_matrix(table, own, Search(table.time_us, table.layout, min_effect=effect, tests=tests))
        for table, own in zip(tables, counts, strict=True)
    ]
    return parts + [_of_ranks(item, ranks.search(item, min_effect=effect, tests=tests)) for item in others]


def _of_matrix(table: Matrix, tests: int, search: Search) -> Examined:
    row = table.row
    part = Examined(
        row=row,
        what="",
        launches=table.launches,
        size_bytes=table.size_bytes,
        layout=table.layout,
        tests=tests,
        stragglers=search.run(),
        fabric=row.fabric,
        matrix=table,
    )
    if unclear := search.unclear:
        part.unclear = unclear
        part.notes.append(
            f"{format_size(table.size_bytes)}: {unclear.name} took {unclear.ratio:.2f}x as long; of "
            f"{table.launches} launch{'es' if table.launches > 1 else ''} nobody can tell whether it always does: "
            "measure with launches=6"
        )
    if table.launches < 2:
        part.notes.append("what was slow in one launch may have passed since: launches=6 tells")
    if row.nodes == 2:
        part.notes.append("with two nodes nothing is left to compare the whole link between them with but the bound")
    return part


def _of_ranks(item: ranks.RankTimes, stragglers: list[Straggler]) -> Examined:
    return Examined(
        row=None,
        what=f"{item.cases} cases over {item.setup}: each rank's own time",
        launches=len(item.excess),
        size_bytes=None,
        layout=item.setup.layout,
        tests=item.excess.shape[1],
        stragglers=stragglers,
        fabric=item.fabric,
        to_pairs=_to_pairs(item.setup),
    )


def _to_pairs(setup: Setup | None) -> str:
    """Return the command that measures every pair of ranks of a set-up; None: nobody knows it."""
    keys: dict[str, object] = {}
    if setup is not None:
        keys = {"transport": setup.transport, "nodes": setup.nodes, "ranks_per_node": setup.ranks_per_node}
        keys |= {"fabric": "virtual"} if setup.virtual_hosts else {}
        if (cluster := setup.emulated) is not None:
            keys |= {"fabric": "emulated", "link": cluster.link, "message_overhead": cluster.message_overhead,
                     "spines": cluster.spines, "routing": cluster.routing if cluster.spines > 1 else "",
                     "intra_link": cluster.intra_link, "slow_link": cluster.slow_link}  # fmt: skip
    return shlex.join(["commbench", "sweep", "pairs", *(f"{key}={value}" for key, value in keys.items() if value)])


def without_repeats(parts: Sequence[Examined]) -> list[tuple[Examined, Straggler]]:
    """Return all that stands out, the slowest first, less what shows the same, or a part of it, at another size."""
    kept: list[tuple[Examined, Straggler]] = []
    everything = [(part, straggler) for part in parts for straggler in part.stragglers]
    for part, straggler in sorted(everything, key=lambda item: (-len(item[1].cells), -item[1].ratio)):
        if not any(_covers(of, other, part, straggler) for of, other in kept):
            kept.append((part, straggler))
    return sorted(kept, key=lambda item: -item[1].ratio)


def _covers(of: Examined, one: Straggler, part: Examined, other: Straggler) -> bool:
    """Whether `other` says no more than `one`: the same ranks, and no messages that `one` has not."""
    if of.layout != part.layout:
        return False
    return other.name == one.name or (bool(other.cells) and other.cells <= one.cells)
