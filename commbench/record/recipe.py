"""A recipe of what was sent: each size, matrix and set of groups of a trace as cases of a sweep, with their weights."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from commbench import collectives
from commbench.collectives import splits
from commbench.layout import Layout
from commbench.record.exchanges import SentMatrix, exchanges, sent_matrices
from commbench.record.trace import ProgramTrace, TracedCalls
from commbench.spec import DTYPES
from commbench.units import format_size

_MOST_SIZES, _MOST_MATRICES = 12, 4  # of one collective in one set of groups
_CODED = frozenset({"pairs", "sendrecv", "tp_all_to_all"})  # collectives that no program calls by these names
_PART = 16  # bytes: each rank's part of a size is a multiple of it


@dataclass(frozen=True, slots=True, kw_only=True)
class SentCase:
    """One thing that a program does in a step."""

    collective: str
    groups: str  # world, rails, blocks:K, ranks:..
    dtype: str
    size_bytes: int  # as a rank sends it; a sweep rounds it down
    matrix: str = ""  # of an uneven exchange: JSON
    calls: float  # a step
    exposed: float  # the part of its time that the program waits for


@dataclass(frozen=True, slots=True, kw_only=True)
class SentCases:
    """All that a sweep can measure of a trace, and in words what it cannot."""

    cases: list[SentCase]
    left_out: list[str] = field(default_factory=list)


class _Family(NamedTuple):
    """Groups that share the ranks out, and what they do."""

    groups: str
    layout: Layout
    ids: frozenset[int]


def sent_cases(trace: ProgramTrace) -> SentCases:
    """Return what the program does in a step, largest sums of bytes first; of the whole run where it has no steps."""
    layout = Layout(*trace.layout())
    left_out: list[str] = []
    cases: list[SentCase] = []
    by_collective: dict[str, list[TracedCalls]] = defaultdict(list)
    steady = trace.step_us() is not None
    for one in trace.calls:
        if (one.steady_count if steady else one.count) and one.nbytes:
            by_collective[one.collective].append(one)
    matrices = list(sent_matrices(trace))
    words: dict[Layout, str] = {}
    for name, lines in sorted(by_collective.items(), key=lambda item: -sum(one.count * one.nbytes for one in item[1])):
        if name not in collectives.TABLE or name in _CODED:
            left_out.append(f"{sum(one.count for one in lines)} calls of {name}: no sweep has it")
            continue
        for family in _families(trace, layout, {one.group for one in lines}, name, words, left_out):
            mine = [one for one in lines if one.group in family.ids]
            make = _uneven if name == "all_to_allv" else _even
            cases += make(trace, name, family, mine, [one for one in matrices if one.group in family.ids], left_out)
    cases.sort(key=lambda one: -one.calls * one.size_bytes)
    return SentCases(cases=cases, left_out=left_out)


def _families(
    trace: ProgramTrace, layout: Layout, used: Iterable[int], name: str, words: dict[Layout, str], left_out: list[str]
) -> list[_Family]:
    """Return the groups by sets that share all ranks out; others are told in `left_out`.

    Sets whose groups lie on the nodes alike are one, measured in the first of them, which `words` has: what is found
    holds for groups of that layout.
    """
    sets: dict[tuple[str, int], list[list[int]]] = defaultdict(list)  # of ids of disjoint groups, by name and size
    for number in sorted(used, key=lambda number: trace.groups[number].ranks):
        group = trace.groups[number]
        if len(group.ranks) < 2:
            continue
        known = sets[group.name, len(group.ranks)]
        taken = {*group.ranks}
        for ids in known:
            if all(taken.isdisjoint(trace.groups[other].ranks) for other in ids):
                ids.append(number)
                break
        else:
            known.append([number])
    families: dict[str, _Family] = {}
    for ids in (ids for known in sets.values() for ids in known):
        partition = [trace.groups[number].ranks for number in ids]
        covered = {rank for ranks in partition for rank in ranks}
        if len(covered) < trace.ranks:
            left_out.append(f"{name} in groups of {len(partition[0])} that have {len(covered)} of {trace.ranks} ranks")
            continue
        word = layout.name(partition)
        if reason := layout.unsupported(word):
            left_out.append(f"{name}: {reason}")
            continue
        word = words.setdefault(layout.within(word), word)
        known_ids = families[word].ids if word in families else frozenset()
        families[word] = _Family(word, layout.within(word), known_ids | {*ids})
    return list(families.values())


def _even(
    trace: ProgramTrace, name: str, family: _Family, lines: Sequence[TracedCalls], _: object, left_out: list[str]
) -> list[SentCase]:
    dtype = _dtype(name, lines)
    if not dtype:
        left_out.append(f"{name} on {lines[0].dtype}: no sweep reduces that")
        return []
    unit = family.layout.ranks * _PART
    weights: dict[int, float] = defaultdict(float)
    for one in lines:
        if one.nbytes < unit:
            left_out.append(f"{name} of {format_size(one.nbytes)}: a sweep begins at {format_size(unit)}")
            continue
        weights[one.nbytes // unit * unit] += _calls(trace, one)
    exposed = _exposed(trace, name, lines)
    return [
        SentCase(
            collective=name, groups=family.groups, dtype=dtype, size_bytes=size, calls=_rounded(calls), exposed=exposed
        )
        for size, calls in _fewer(weights, _MOST_SIZES, math.log).items()
    ]


def _uneven(
    trace: ProgramTrace,
    name: str,
    family: _Family,
    lines: Sequence[TracedCalls],
    matrices: Sequence[SentMatrix],
    left_out: list[str],
) -> list[SentCase]:
    calls = sum(_calls(trace, one) for one in lines)
    known: dict[str, float] = defaultdict(float)
    for one in matrices:
        if one.matrix.any():
            known[json.dumps(one.matrix.tolist(), separators=(",", ":"))] += one.weight
    if not known:
        left_out.append(f"{name} in {family.groups}: no exchange was kept whole, so that its splits are not known")
        return []
    kept = _fewer(known, _MOST_MATRICES, lambda text: math.log(_size(text)))
    dtype = _dtype(name, lines)
    itemsize = DTYPES[dtype]
    if any(cell % itemsize for text in kept for row in json.loads(text) for cell in row):
        dtype = "uint8"
    return [
        SentCase(
            collective=name, groups=family.groups, dtype=dtype, size_bytes=_size(text), matrix=text,
            calls=_rounded(calls * weight / sum(kept.values())), exposed=_exposed(trace, name, lines),
        )
        for text, weight in kept.items()
    ]  # fmt: skip


def _size(text: str) -> int:
    return splits.size_of(np.array(json.loads(text), dtype=np.int64))


def _dtype(name: str, lines: Sequence[TracedCalls]) -> str:
    """Return the dtype of most bytes; uint8 where only data moves and no sweep has it, "" where it is reduced."""
    moved: dict[str, float] = defaultdict(float)
    for one in lines:
        moved[one.dtype] += one.nbytes * one.count
    dtype = max(moved, key=lambda key: moved[key])
    if dtype in DTYPES:
        return dtype
    return "" if collectives.get(name).reduces({}) else "uint8"


def _calls(trace: ProgramTrace, one: TracedCalls) -> float:
    """Return what a line adds to the calls a step of a set of groups, in which each rank has a line."""
    if trace.step_us() is None:
        return one.count / trace.ranks
    return one.steady_count / max(1, trace.step_count(one.rank) - 1) / trace.ranks


def _rounded(calls: float) -> float:
    return float(f"{calls:.4g}")


def _exposed(trace: ProgramTrace, name: str, lines: Sequence[TracedCalls]) -> float:
    """Return the part of an exchange's time that the program waits for; 1 where that cannot be told."""
    sites = {(one.site, one.async_op) for one in lines}
    mine = [one for one in exchanges(trace) if one.collective == name and (one.site, one.async_op) in sites]
    known = [(one.exposed_us, one.time_us) for one in mine if one.exposed_us is not None and one.time_us]
    total = sum(time for _, time in known)
    return float(f"{min(1.0, sum(exposed for exposed, _ in known) / total):.3g}") if total else 1.0


def _fewer(weights: dict[Any, float], most: int, place: Callable[[Any], float]) -> dict[Any, float]:
    """Return at most `most` of the keys, none at one place: neighbours go into the one of them that weighs more."""
    kept = dict(sorted(weights.items(), key=lambda item: place(item[0])))
    while len(kept) > 1:
        keys = list(kept)
        near = min(range(len(keys) - 1), key=lambda at: place(keys[at + 1]) - place(keys[at]))
        if len(kept) <= most and place(keys[near + 1]) > place(keys[near]):
            break
        pair = keys[near], keys[near + 1]
        larger, smaller = sorted(pair, key=lambda key: -kept[key])
        kept[larger] += kept.pop(smaller)
    return kept


def documents(trace: ProgramTrace, cases: Sequence[SentCase]) -> list[dict[str, Any]]:
    """Return the documents of a recipe: one for each collective, set of groups and dtype."""
    nodes, per_node = trace.layout()
    made: dict[tuple[str, str, str], list[SentCase]] = defaultdict(list)
    for one in cases:
        made[one.collective, one.groups, one.dtype].append(one)
    return [
        {
            "transport": trace.transport,
            "collective": collective,
            "groups": groups,
            "dtype": dtype,
            "nodes": nodes,
            "ranks_per_node": per_node,
            **trace.fabric,
            **_what(mine),
        }
        for (collective, groups, dtype), mine in made.items()
    ]


def _what(cases: Sequence[SentCase]) -> dict[str, Any]:
    if cases[0].matrix:
        return {"splits": "matrix", "matrix": [one.matrix for one in cases]}
    return {"sizes": {"list": sorted(one.size_bytes for one in cases)}}


def text(trace: ProgramTrace, cases: SentCases) -> str:
    """Return the recipe as a file."""
    import yaml

    head = [f"# What {' '.join(trace.command) or 'a program'} sent, on {trace.ranks} ranks; calls a step:"]
    head += [
        f"# {one.calls:g} {one.collective} of {format_size(one.size_bytes)} in {one.groups}"
        + (", uneven" if one.matrix else "")
        for one in cases.cases
    ]
    head += [f"# left out: {reason}" for reason in dict.fromkeys(cases.left_out)]
    body: str = yaml.safe_dump_all(documents(trace, cases.cases), sort_keys=False)
    return "\n".join(line.replace("\n", " ") for line in head) + "\n" + body.replace("${", "\\${")
