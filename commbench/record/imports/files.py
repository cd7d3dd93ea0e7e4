"""Files that torch has written of the ranks of one job, into the trace of a program."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import commbench
from commbench.errors import UsageError
from commbench.record.consolidate import consolidate
from commbench.record.imports import execution_trace, kineto, stream
from commbench.record.imports.call import ImportedCall, ImportedRank
from commbench.record.imports.stream import Item
from commbench.record.rank_file import RankRecord
from commbench.record.tally import Tally
from commbench.record.trace import IMPORTED, MOST_RANKS, ProgramTrace

_LISTS = frozenset({kineto.EVENTS, execution_trace.NODES})
_WRITTEN_BY = "torch.profiler (export_chrome_trace) or ExecutionTraceObserver"
_NAMED = (r"rank[-_. ]?(\d+)", r"(?:^|[-_.])(\d{1,5})$")  # a rank in a file's name, best first


class Imported(NamedTuple):
    """A trace, and in words what the files could not tell."""

    trace: ProgramTrace
    notes: list[str]


def read(paths: Sequence[Path], nodes: int | None, ranks_per_node: int | None, **about: Any) -> Imported:
    """Return the trace of the job whose ranks have left `paths`. `about`: fields of it that no file knows.

    `nodes` and `ranks_per_node` are the job's, where the files name no hosts. Ranks without a file make the even calls
    that a rank of the same group makes. Raises `UsageError`, naming the file, for one that cannot be read, has no
    communication in it, or is of another job.
    """
    found = {path: _file(path) for path in paths}
    ranks = _world(found)
    mine = _by_rank(found, ranks)
    notes = [f"{path.name}: {note}" for path, one in found.items() for note in one.notes]
    records = [_record(one, rank, ranks) for rank, one in sorted(mine.items())]
    missing = [rank for rank in range(ranks) if rank not in mine]
    if missing:
        records += [_like_others(rank, records) for rank in missing]
        some = ", ".join(map(str, missing[:8])) + (", .." if len(missing) > 8 else "")
        notes.append(
            f"no file of rank {some}: they are taken to send what ranks of their groups send; uneven exchanges can be "
            "tuned with the files of all ranks"
        )
    hosts = _hosts(mine, ranks, nodes, ranks_per_node)
    if not any(hosts):
        notes.append(
            f"the files name no hosts: {ranks} ranks on one node are taken; nodes=N ranks_per_node=M says more"
        )
    records = [replace(record, host=hosts[record.rank]) for record in records]
    if not any(one.steps for one in mine.values()):
        notes.append("no steps in the files (torch.profiler's are those between two calls of its step()): the sums "
                     "are of the whole file")  # fmt: skip
    try:
        return Imported(consolidate(sorted(records, key=lambda one: one.rank), **about), notes)
    except ValueError as error:
        raise UsageError(f"the files contradict each other: {error}", hint="give the files of one job") from None


def _file(path: Path) -> ImportedRank:
    """Return what a file tells; what kind it is shows by which list comes first."""
    items = stream.items(path, _LISTS)
    before: list[Item] = []
    for item in items:
        before.append(item)
        if item.listed:
            break
    listed = before[-1].key if before and before[-1].listed else ""
    whole: Iterator[Item] = chain(before, items)
    if not listed:
        raise UsageError(f"{path} has no events in it", hint=f"give what {_WRITTEN_BY} has written")
    try:
        made = kineto.read(whole) if listed == kineto.EVENTS else execution_trace.read(whole)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:  # a text where torch has a number, ..
        raise UsageError(
            f"{path} has fields that are not as torch writes them: {error}", hint=f"give what {_WRITTEN_BY} has written"
        ) from error
    if not made.calls:
        reason = f": {made.notes[0]}" if made.notes else ""
        raise UsageError(
            f"{path} has no communication in it that could be read{reason}",
            hint="gloo's calls show their sizes where the profiler has record_shapes=True; NCCL's always",
        )
    return made


def _world(found: dict[Path, ImportedRank]) -> int:
    """Return how many ranks the job has. Raises `UsageError` where files disagree."""
    said = {path: one.ranks for path, one in found.items() if one.ranks}
    if len({*said.values()}) > 1:
        first, other = next((a, b) for a in said for b in said if said[a] != said[b])
        raise UsageError(
            f"{first} is of {said[first]} ranks, and {other} of {said[other]}", hint="give the files of one job"
        )
    members = [rank for one in found.values() for call in one.calls for rank in call.ranks]
    ranks = next(iter(said.values()), None) or max([*members, len(found) - 1]) + 1
    if max(members) >= ranks or ranks > MOST_RANKS:
        path = max(found, key=lambda path: max(max(call.ranks) for call in found[path].calls))
        raise UsageError(f"{path} is of {ranks} ranks, and has rank {max(members)}", hint="give the files of one job")
    return ranks


def _by_rank(found: dict[Path, ImportedRank], ranks: int) -> dict[int, ImportedRank]:
    """Return the files by rank, as they say it or their names do. Raises `UsageError` where that is not one each."""
    mine: dict[int, ImportedRank] = {}
    paths: dict[int, Path] = {}
    for path, one in found.items():
        rank = one.rank if one.rank is not None else _in_name(path)
        if rank is None:
            raise UsageError(f"which rank is {path} of?", hint="neither file nor name says it: name it rank-N.json")
        if rank >= ranks:
            raise UsageError(f"{path} is of rank {rank}, of {ranks} ranks", hint="give the files of one job")
        if rank in paths:
            raise UsageError(
                f"{paths[rank]} and {path} are both of rank {rank}", hint="one file of each rank: one profile, one kind"
            )
        if outside := [call for call in one.calls if rank not in call.ranks]:
            raise UsageError(
                f"{path} is of rank {rank}, which calls in a group of {list(outside[0].ranks[:8])}",
                hint="is the rank in its name right?",
            )
        mine[rank], paths[rank] = one, path
    return mine


def _in_name(path: Path) -> int | None:
    stem = re.sub(r"(\.pt)?(\.trace)?\.json(\.gz)?$", "", path.name)
    return next((int(match[1]) for one in _NAMED if (match := re.search(one, stem))), None)


def _hosts(mine: dict[int, ImportedRank], ranks: int, nodes: int | None, per_node: int | None) -> list[str]:
    """Return the host of each rank: as declared, else as the files say where all of them do, else nothing.

    Raises `UsageError` for a number of nodes that does not fit.
    """
    if nodes or per_node:
        nodes = nodes or ranks // (per_node or 1)
        per_node = per_node or ranks // nodes
        if nodes * per_node != ranks:
            raise UsageError(
                f"nodes={nodes} ranks_per_node={per_node} is not {ranks}, the ranks of the files",
                hint="nodes=N: as many ranks on each",
            )
        return [f"node-{rank // per_node}" for rank in range(ranks)]
    said = [mine[rank].host if rank in mine else "" for rank in range(ranks)]
    return said if all(said) else [""] * ranks


def _record(one: ImportedRank, rank: int, ranks: int) -> RankRecord:
    """Return what a rank has sent, by kinds of calls. What was before the first step is set-up."""
    tally = Tally()
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    first = one.steps[0][0] if one.steps else float("-inf")
    for call in one.calls:
        if call.began_us >= first:
            tally.end_first_step()
        _count(tally, call, groups.setdefault((call.group_name, call.ranks), len(groups)))
    return RankRecord(
        rank=rank,
        ranks=ranks,
        host="",
        transport=_transport(one.backend),
        gpu=one.gpu,
        versions={"commbench": commbench.__version__, IMPORTED: one.kind},
        group_names=[name for name, _ in groups],
        group_ranks=[list(members) for _, members in groups],
        calls=tally.lines(rank),
        steps=[[number, us] for number, (_, us) in enumerate(one.steps, 1)],
    )


def _transport(backend: str) -> str:
    """Return what carried the calls: nccl of `cpu:gloo,cuda:nccl`, whose calls are those that a file has."""
    return next((name for name in ("nccl", "gloo", "mpi", "ucc") if name in backend), "nccl")


def _count(tally: Tally, call: ImportedCall, group: int) -> None:
    base = (group, call.collective, call.dtype, call.asynchronous, "")
    entry = tally.count(base, call.nbytes, call.sent, call.received)
    entry.host_us += call.host_us
    if call.wait_us is not None:
        entry.wait_us += call.wait_us
        entry.wait_count += 1
    if call.device_us is not None:
        entry.device_us += call.device_us
        entry.device_count += 1


def _like_others(rank: int, records: Sequence[RankRecord]) -> RankRecord:
    """Return a rank without a file: in each group that somebody has seen it in, the even calls of that one."""
    names: list[str] = []
    ranks: list[list[int]] = []
    calls = []
    steps: list[list[float]] = []
    for other in records:
        for place, (name, members) in enumerate(zip(other.group_names, other.group_ranks, strict=True)):
            if rank not in members or any(known == (name, members) for known in zip(names, ranks, strict=True)):
                continue
            names.append(name)
            ranks.append(members)
            steps = steps or other.steps
            calls += [
                replace(one, rank=rank, group=len(names) - 1)
                for one in other.calls
                if one.group == place and one.collective != "all_to_allv"
            ]
    return replace(records[0], rank=rank, group_names=names, group_ranks=ranks, calls=calls, steps=steps)
