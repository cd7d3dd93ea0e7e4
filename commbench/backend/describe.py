"""A call of torch's process group as an observer is told of it: read off its arguments, whatever their form."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from commbench.backend.observer import GroupInfo, ObservedCall

# torch's methods -> our collectives; torch 2.13 has new names, and keeps the old ones.
COLLECTIVES = {
    "alltoall_base": "all_to_all",
    "all_to_all_single": "all_to_all",
    "alltoall": "all_to_allv",
    "allgather": "all_gather",
    "_allgather_base": "all_gather",
    "all_gather_single": "all_gather",
    "allgather_coalesced": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "all_gather_single_coalesced": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "reduce_scatter_single_coalesced": "reduce_scatter",
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "broadcast": "broadcast",
    # no collectives of ours
    "reduce": "reduce",
    "gather": "gather",
    "scatter": "scatter",
    "barrier": "barrier",
    "monitored_barrier": "barrier",
    "send": "send",
    "recv": "recv",
    "recv_anysource": "recv",
}
_SINGLE = ("alltoall_base", "all_to_all_single")
_ROOTS = {"broadcast": "rootRank", "reduce": "rootRank", "gather": "rootRank", "scatter": "rootRank"}
_MOST_KEPT = 4096  # descriptions of a group
_NAMED = ("output", "input", "output_split_sizes", "input_split_sizes")


class Descriptions:
    """What an observer is told of the calls of one group. A call like one before it has the same description.

    So most calls need none of their own, and an observer finds by its identity what it knows of a call.
    """

    def __init__(self, group: GroupInfo) -> None:
        self._group = group
        self._kept: dict[tuple[object, ...], ObservedCall] = {}

    def of(self, function: str, given: Sequence[Any], named: Mapping[str, Any]) -> ObservedCall:
        """Return what an observer is told of a call of the method `function` with these arguments."""
        key = None if named else _key(function, given)
        if key is None:
            return observed_call(self._group, function, given, named)
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= _MOST_KEPT:  # of a program that sends other sizes each time
                self._kept.clear()
            kept = self._kept[key] = observed_call(self._group, function, given, named)
        return kept


def _key(function: str, given: Sequence[Any]) -> tuple[object, ...] | None:
    """Return all that the description of a call depends on; None where that is much, as of uneven splits and lists."""
    of_options = _KEYED.get(function)
    if of_options is None or len(given) != of_options + 1:
        return None
    first, options = given[0], given[of_options]
    if type(first) is list:
        if len(first) != 1:
            return None
        first = first[0]
    second = first
    if of_options > 1:
        second = given[1]
        if type(second) is list:
            if len(second) != 1:
                return None
            second = second[0]
        if of_options == 4 and (len(given[2]) or len(given[3])):
            return None
    later = getattr(options, "asyncOp", None)
    if later is None or not (isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)):
        return None
    root = options.rootRank if function == "broadcast" else 0
    return (function, first.dtype, first.numel(), second.dtype, second.numel(), later, first.device, root)


# Methods that take a tensor or two, or lists of one, and then options: where these are.
_KEYED = dict.fromkeys(_SINGLE, 4) | {"allreduce": 1, "broadcast": 1} | dict.fromkeys(
    ("_allgather_base", "all_gather_single", "allgather_into_tensor_coalesced", "all_gather_single_coalesced",
     "_reduce_scatter_base", "reduce_scatter_single", "reduce_scatter_tensor_coalesced",
     "reduce_scatter_single_coalesced"), 2)  # fmt: skip


def observed_call(group: GroupInfo, function: str, given: Sequence[Any], named: Mapping[str, Any]) -> ObservedCall:
    """Return what an observer is told of a call of the method `function` with these arguments."""
    if function in _SINGLE and len(given) >= 4:
        return _exchange(group, function, given, named)
    collective = COLLECTIVES[function]
    options = next((value for value in (*given, *named.values()) if _is_options(value)), None)
    tensors = [_flat(value) for value in (*given[:2], *(named[key] for key in named if key not in ("opts", "timeout")))]
    tensors = [found for found in tensors if found]
    first = tensors[0][0] if tensors else None
    nbytes = max((sum(map(_nbytes, found)) for found in tensors), default=0)
    sent = received = None
    if function in _SINGLE and len(tensors) > 1:
        splits = [*given[2:4], *(named[key] for key in _NAMED[2:] if key in named)]
        if any(len(split) for split in splits):
            collective = "all_to_allv"
            received, sent = (_bytes(group, tensors[i][0], tensors[i][0].nbytes, splits[i]) for i in (0, 1))
    elif function == "alltoall" and len(tensors) > 1:
        received, sent = (tuple(tensor.nbytes for tensor in found) for found in tensors[:2])
    return ObservedCall(
        group=group,
        collective=collective,
        function=function,
        dtype="" if first is None else _dtype(first),
        nbytes=nbytes,
        sent=sent,
        received=received,
        asynchronous=bool(getattr(options, "asyncOp", True)),
        device="" if first is None else first.device.type,
        root=_root(collective, function, given, named, options),
    )


def _exchange(group: GroupInfo, function: str, given: Sequence[Any], named: Mapping[str, Any]) -> ObservedCall:
    """Return the same of the exchange that Mixture-of-Experts layers make, which is short: so its costs count."""
    out, inp, received, sent = given[:4]
    options = given[4] if len(given) > 4 else named.get("opts")
    uneven, sending, receiving = bool(len(received) or len(sent)), inp.nbytes, out.nbytes
    return ObservedCall(  # by place, which is faster than by name
        group,
        "all_to_allv" if uneven else "all_to_all",
        function,
        _dtype(inp),
        max(sending, receiving),
        _bytes(group, inp, sending, sent) if uneven else None,
        _bytes(group, out, receiving, received) if uneven else None,
        bool(getattr(options, "asyncOp", True)),
        inp.device.type,
    )


def _is_options(value: Any) -> bool:
    return not isinstance(value, torch.Tensor | list | tuple | int) and hasattr(value, "timeout")


@functools.cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(tensor: torch.Tensor) -> str:
    return _name(tensor.dtype)


def _flat(value: Any) -> list[torch.Tensor]:
    """Return the tensors of an argument: one, a list, or a list of lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _flat(item)]
    return []


def _nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor; of a sparse one, which has no `nbytes`, those that it stands for."""
    return tensor.numel() * tensor.itemsize


def _bytes(group: GroupInfo, tensor: torch.Tensor, nbytes: int, split: Sequence[int]) -> tuple[int, ...]:
    """Return the bytes for each rank of a tensor of `nbytes`."""
    if not len(split):
        return (nbytes // len(group.ranks),) * len(group.ranks)
    rows = tensor.shape[0] if tensor.dim() else 1
    row = nbytes // rows if rows else 0
    return tuple([int(count) * row for count in split])


def _root(collective: str, function: str, given: Sequence[Any], named: Mapping[str, Any], options: Any) -> int | None:
    if function in ("send", "recv") and len(given) > 1:
        return int(given[1])
    if collective not in _ROOTS:
        return None
    root = getattr(options, _ROOTS[collective], None)
    if root is None:
        root = named.get("root", next((value for value in given if isinstance(value, int)), None))
    return None if root is None else int(root)
