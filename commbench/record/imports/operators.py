"""Operators of c10d: what a file has of backends whose calls leave no `record_param_comms`, as gloo's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from commbench.record.imports.call import Groups, ImportedCall, build, collective_of, elements_of

PREFIX = "c10d::"
# The places of the outputs and of the inputs among the arguments.
_PLACES = {
    "allreduce_": (0, 0), "allreduce_coalesced_": (0, 0), "broadcast_": (0, 0), "reduce_": (0, 0),
    "allgather_": (0, 1), "_allgather_base_": (0, 1), "allgather_into_tensor_coalesced_": (0, 1),
    "reduce_scatter_": (0, 1), "_reduce_scatter_base_": (0, 1), "reduce_scatter_tensor_coalesced_": (0, 1),
    "alltoall_": (0, 1), "alltoall_base_": (0, 1), "send": (0, 0), "recv_": (0, 0), "barrier": (0, 0),
}  # fmt: skip
_OUT_SPLITS, _IN_SPLITS = 3, 4  # of alltoall_base_


class Operator(NamedTuple):
    """One call of an operator, as the file has it."""

    name: str  # with its prefix
    shapes: Sequence[Any]
    types: Sequence[Any]
    values: Sequence[Any]


def is_call(name: str) -> bool:
    """Return whether this is an operator that calls a collective."""
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) in _PLACES


def read(operator: Operator, groups: Groups, inner_dtype: str = "") -> ImportedCall | str:
    """Return the call; in words why not, where it cannot be told.

    The operator names no group: where the shapes tell its size, it is the one of that size, else the largest.
    `inner_dtype`: of the library's own call, as lists of tensors hide theirs.
    """
    name = operator.name.removeprefix(PREFIX)
    collective = collective_of(name)
    sizes = [_at(operator.shapes, place) for place in _PLACES[name]]
    out, given = (elements_of(shape) if shape else 0 for shape in sizes)
    types = [str(_at(operator.types, place) or "") for place in _PLACES[name]]
    dtype = next((found for text in reversed(types) if (found := dtype_in(text))), "") or inner_dtype
    splits: list[Any] = [[], []]
    if name == "alltoall_base_":
        splits = [_at(operator.values, _IN_SPLITS), _at(operator.values, _OUT_SPLITS)]
    elif name == "alltoall_":
        splits = [[elements_of(one) for one in _tensors(shape)] for shape in reversed(sizes)]
    if collective == "barrier":
        out = given = 0
    elif not (dtype and operator.shapes):
        return f"{collective} whose shapes or dtype the file does not have"
    size = next((len(one) for one in splits if isinstance(one, list) and one), None)
    larger, smaller = max(out, given), min(out, given)
    if collective in ("all_gather", "reduce_scatter") and smaller and larger > smaller:
        size = larger // smaller
    ranks = groups.of_size(size)
    if ranks is None:
        return f"{collective} in a group of {size} ranks, which the file does not name"
    if collective == "all_gather" and not out:
        out = given * len(ranks)
    if collective == "reduce_scatter" and not given:
        given = out * len(ranks)
    call = build(name, dtype, (given, out), (splits[0], splits[1]), ranks, "")
    if isinstance(call, ImportedCall):
        call.asynchronous = str(_at(operator.values, len(operator.values) - 2)).lower() == "true"
    return call


def _at(values: Sequence[Any], place: int) -> Any:
    return values[place] if 0 <= place < len(values) else None


def _tensors(shape: Any) -> list[Any]:
    return shape if isinstance(shape, list) and all(isinstance(one, list) for one in shape) else []


def dtype_in(text: str) -> str:
    """Return torch's word for the dtype in a type: of `Tensor(float)`, in lists too, or of a plain `float`."""
    if found := re.search(r"Tensor\(([^)]+)\)", text):
        return found[1]
    return "" if text in ("", "TensorList", "Scalar", "ScalarList") or "[" in text else text
