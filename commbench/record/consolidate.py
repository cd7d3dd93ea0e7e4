"""From what each rank has written to a trace of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from commbench.record import trace
from commbench.record.rank_file import RankRecord
from commbench.record.trace import ProgramTrace, TracedGroup, TracedStep


def consolidate(records: Sequence[RankRecord], **about: Any) -> ProgramTrace:
    """Return the trace of what ranks have recorded, at least one; `about`: fields of it that ranks do not know.

    Raises `ValueError`, in words, where the ranks contradict each other.
    """
    first = records[0]
    if odd := [record for record in records if record.ranks != first.ranks]:
        raise ValueError(
            f"rank {first.rank} was one of {first.ranks}, and rank {odd[0].rank} one of {odd[0].ranks}: "
            "several programs have recorded into one folder"
        )
    hosts = {record.rank: record.host for record in records}
    if about.get("anonymous"):
        names = {host: f"host-{number}" for number, host in enumerate(dict.fromkeys(hosts.values()))}
        hosts = {rank: names[host] for rank, host in hosts.items()}
    known: dict[tuple[int, tuple[int, ...], str], int] = {}
    for record in records:
        for name, ranks in zip(record.group_names, record.group_ranks, strict=True):
            known.setdefault((-len(ranks), tuple(ranks), name), 0)
    known = {key: number for number, key in enumerate(sorted(known))}
    calls = []
    for record in records:
        pairs = zip(record.group_names, record.group_ranks, strict=True)
        ids = [known[-len(ranks), tuple(ranks), name] for name, ranks in pairs]
        if odd_calls := [one for one in record.calls if one.rank != record.rank or not 0 <= one.group < len(ids)]:
            raise ValueError(f"rank {record.rank} has calls of rank {odd_calls[0].rank}, group {odd_calls[0].group}")
        calls += [replace(one, group=ids[one.group]) for one in record.calls]
    made = ProgramTrace(
        ranks=first.ranks,
        hosts=[hosts.get(rank, "") for rank in range(min(first.ranks, trace.MOST_RANKS))],
        transport=first.transport,
        gpu=first.gpu,
        versions=first.versions,
        groups=[TracedGroup(group=number, name=key[2], ranks=list(key[1])) for key, number in known.items()],
        calls=calls,
        steps=[
            TracedStep(rank=record.rank, step=int(step), duration_us=us)
            for record in records
            for step, us in (pair for pair in record.steps if len(pair) == 2)
        ],
        **about,
    )
    trace.check(made)
    return made
