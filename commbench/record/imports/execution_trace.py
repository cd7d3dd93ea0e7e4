"""ExecutionTraceObserver's file of one rank: what was called, in which order, without times."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from commbench.record.imports import operators
from commbench.record.imports.call import Groups, ImportedCall, ImportedRank, build, collective_of, elements_of
from commbench.record.imports.operators import Operator
from commbench.record.imports.stream import Item

NODES = "nodes"
_COMMS = "record_param_comms"
_INPUTS = ("group", "rank", "name", "in", "out", "start", "stride", "size")  # after tensors and sequence
_NAME = 4  # the place of the collective's name, where there are tensors
_SAY_THEIR_RANK = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})  # others: a root's
_WORLD = "0"  # torch's name of the group of all ranks


def read(items: Iterable[Item]) -> ImportedRank:
    """Return what a file tells; `calls` are none where it has no communication in it."""
    groups = Groups()
    comms: list[Mapping[str, Any]] = []
    ops: list[Mapping[str, Any]] = []
    for item in items:
        node = item.value
        if not item.listed or not isinstance(node, dict) or not isinstance(name := node.get("name"), str):
            continue
        if "process_group:init" in name:
            _declare(groups, _values(node))
        elif name == _COMMS:
            comms.append(node)
        elif operators.is_call(name):
            ops.append(node)
    passed: Counter[str] = Counter()
    calls = [_of_comms(node, groups) for node in comms] or [_of_operator(node, groups) for node in ops]
    world = groups.ranks.get(_WORLD) or max(groups.ranks.values(), key=len, default=())
    made = ImportedRank(kind="execution trace", rank=_rank(comms), ranks=len(world) or None)
    for call in calls:
        if isinstance(call, ImportedCall):
            made.calls.append(call)
        elif call:
            passed[call] += 1
    devices = {str(one) for node in [*comms, *ops] for one in _devices(_values(node))}
    made.backend = "nccl" if any("cuda" in one for one in devices) else "gloo" if devices else ""
    made.notes = [f"passed over {count} calls: {why}" for why, count in passed.items()]
    return made


def _declare(groups: Groups, values: list[Any]) -> None:
    try:
        groups.declare(json.loads(values[0]))
    except (ValueError, TypeError, IndexError):  # torch cuts a long list of groups
        return


def _values(node: Mapping[str, Any], side: str = "inputs") -> list[Any]:
    """Return the values of a node; old files have them as a plain list."""
    given = node.get(side)
    if isinstance(given, dict):
        given = given.get("values")
    return given if isinstance(given, list) else []


def _part(node: Mapping[str, Any], side: str, name: str) -> list[Any]:
    given = node.get(side)
    found = given.get(name) if isinstance(given, dict) else node.get(f"{side.removesuffix('s')}_{name}")
    return found if isinstance(found, list) else []


def _attributes(node: Mapping[str, Any]) -> dict[str, Any]:
    attrs = node.get("attrs")
    given = [one for one in attrs if isinstance(one, dict)] if isinstance(attrs, list) else []
    return {str(one.get("name")): one.get("value") for one in given}


def _of_comms(node: Mapping[str, Any], groups: Groups) -> ImportedCall | str:
    """Return a call of `record_param_comms`; "" of what is none, in words why not where it cannot be told.

    Its inputs are tensors (not of waits and barriers), sequence, group, rank, name, splits in and out, first rank,
    stride and size of the group. Newer files say the same in attributes.
    """
    values, attrs = _values(node), _attributes(node)
    shift = 0 if len(values) > _NAME and isinstance(values[_NAME], str) else 1
    given = dict(zip(_INPUTS, values[2 - shift :], strict=False))
    name = attrs.get("collective_name", given.get("name"))
    if not isinstance(name, str) or not collective_of(name):
        return ""
    group = given.get("group")
    group = str(attrs.get("pg_name", group[0] if isinstance(group, list) and group else group))
    size = attrs.get("pg_size", given.get("size"))
    ranks = groups.of_call(group, None, size, given.get("start"), given.get("stride"))
    if ranks is None:
        return "the ranks of their group are not in the file"
    types = _part(node, "inputs", "types")
    dtype = str(attrs.get("dtype", types[0] if types else ""))
    if dtype.startswith(("Tensor", "Generic")):
        dtype = operators.dtype_in(dtype)
    elements = tuple(
        int(attrs[key]) if isinstance(attrs.get(key), int) else _elements(node, side)
        for key, side in (("in_msg_nelems", "inputs"), ("out_msg_nelems", "outputs"))
    )
    splits = given.get("in", []), given.get("out", [])
    call = build(name, dtype, (elements[0], elements[1]), splits, ranks, groups.names.get(group, ""))
    if isinstance(call, ImportedCall):
        call.asynchronous = len(values) > 10 - shift and values[-1] is True
    return call


def _elements(node: Mapping[str, Any], side: str) -> int:
    shapes = _part(node, side, "shapes")
    return elements_of(shapes[0]) if shapes else 0


def _of_operator(node: Mapping[str, Any], groups: Groups) -> ImportedCall | str:
    parts = [_part(node, "inputs", part) for part in ("shapes", "types")]
    return operators.read(Operator(node["name"], parts[0], parts[1], _values(node)), groups)


def _devices(values: Any) -> list[str]:
    """Return where tensors lie, of values that have some: `[id, storage, offset, elements, itemsize, device]`."""
    if not isinstance(values, list):
        return []
    if len(values) == 6 and isinstance(values[5], str) and all(isinstance(one, int) for one in values[:5]):
        return [values[5]]
    return [found for one in values for found in _devices(one)]


def _rank(comms: list[Mapping[str, Any]]) -> int | None:
    """Return the rank that calls in the group of all ranks give; None where there are none, or they disagree."""
    found = set()
    for node in comms:
        values = _values(node)
        place = next(
            (at for at, value in enumerate(values[:4]) if isinstance(value, list) and value[:1] == [_WORLD]), None
        )
        if place is not None and len(values) > place + 2 and collective_of(str(values[place + 2])) in _SAY_THEIR_RANK:
            found.add(values[place + 1])
    rank = found.pop() if len(found) == 1 else None
    return rank if isinstance(rank, int) and rank >= 0 else None
