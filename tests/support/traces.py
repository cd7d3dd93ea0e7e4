"""Traces of a program that nobody has run: what it sends follows from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from commbench.record.consolidate import consolidate
from commbench.record.rank_file import RankRecord
from commbench.record.tally import Tally
from commbench.record.trace import ProgramTrace

STEP_US = 50_000.0
ROW = 64  # bytes of a token


def records(
    *,
    ranks: int = 4,
    per_node: int = 2,
    steps: int = 10,
    groups: Sequence[Sequence[int]] = ((0, 2), (1, 3)),
    even: Sequence[int] = (1 << 20,),
    uneven: bool = True,
    fixed: bool = False,
    host_us: float = 100.0,
    wait_us: float = 400.0,
    name: str = "ep",
) -> list[RankRecord]:
    """What ranks have written: at set-up a broadcast, then in each step two exchanges in `groups`, and one sum of all.

    even: sizes of even exchanges, each once a step; fixed: whether splits are the same in every step.
    """
    rng = random.Random(0)
    mine = {rank: list(group) for group in groups for rank in group}
    tables = {rank: Tally() for rank in range(ranks)}
    for rank in range(ranks):
        _add(tables[rank], (0, "broadcast", "fp32", False, "train.py:5"), 4096, host_us=1e6, wait_us=0.0)
    sent: dict[int, list[int]] = {}
    for step in range(steps):
        if step == 0 or not fixed:
            sent = {rank: [ROW * rng.randrange(1, 100) for _ in mine[rank]] for rank in mine}
        for rank, group in mine.items():
            table, place = tables[rank], group.index(rank)
            for size in even:
                _add(
                    table, (1, "all_to_all", "bf16", False, "moe.py:20"), size, host_us=host_us, wait_us=wait_us + rank
                )
            if uneven:
                out, back = tuple(sent[rank]), tuple(sent[other][place] for other in group)
                _add(table, (1, "all_to_allv", "bf16", True, "moe.py:30"), max(sum(out), sum(back)), out, back,
                     host_us=host_us, wait_us=wait_us)  # fmt: skip
        for table in tables.values():
            _add(table, (0, "all_reduce", "fp32", True, ""), 1 << 16, host_us=host_us, wait_us=wait_us)
            table.end_first_step()
    return [
        RankRecord(
            rank=rank,
            ranks=ranks,
            host=f"node{rank // per_node}",
            transport="gloo",
            gpu="",
            versions={"torch": "2.13.0"},
            group_names=["", name] if rank in mine else [""],
            group_ranks=[list(range(ranks)), *([mine[rank]] if rank in mine else [])],
            calls=tables[rank].lines(rank),
            steps=[[step, STEP_US * (100 if step == 0 else 1)] for step in range(steps)],
        )
        for rank in range(ranks)
    ]


def _add(
    table: Tally, base: Any, nbytes: int, sent: Any = None, received: Any = None, *, host_us: float, wait_us: float
) -> None:
    entry = table.count(base, nbytes, sent, received)
    entry.host_us += host_us
    entry.wait_us += wait_us
    entry.wait_count += 1


def planted(**more: Any) -> ProgramTrace:
    """The trace of `records`."""
    return consolidate(records(**more), command=["python", "train.py"], created="2026-11-30T00:00:00+00:00")
