"""A checkpoint read through the network: each byte by one rank, which sends it to those who want it.

On a shared file system every rank would else read what many of them have alike. Pieces, as the checkpoint's ranks wrote
them, are shared out among those of today by size; from there they go as `Communicator.reshard_boxes` has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from commbench.communicators.communicator import Communicator
from commbench.errors import CommbenchError
from moe_ref.training.checkpoint import AllSucceeded, Box, Checkpoint, OtherRankFailed

_AT_ONCE = 1 << 26  # elements of whole tensors that travel together: ranks hold no more of the checkpoint than that

Wanted = Mapping[str, tuple[Box, tuple[int, ...], bool]]  # by name: box, shape, and whether this rank wants it


class _Piece(NamedTuple):
    name: str
    box: Box
    length: tuple[int, ...]
    reader: int


def read(
    found: Checkpoint, kind: str, wanted: Wanted, comm: Communicator, device: torch.device, all_succeeded: AllSucceeded
) -> Iterator[tuple[str, Tensor]]:
    """Yield by name what this rank wants of each tensor `kind/name`. Collective, `wanted` with the same names."""
    pieces = _readers(found, kind, [*wanted], comm.size)
    for names in _batches(wanted):
        failure: CommbenchError | None = None
        held: list[dict[tuple[tuple[int, int], ...], Tensor]] = [{} for _ in names]
        try:
            for place, name in enumerate(names):
                box, length, wants = wanted[name]
                if wants and not (pieces[name] and pieces[name][0].box.shape == box.shape):
                    found.read(f"{kind}/{name}", box, length)  # which says what is wrong
                for piece in pieces[name]:
                    if piece.reader == comm.rank:
                        tensor = found.read(f"{kind}/{name}", piece.box, piece.length)
                        held[place][_edges(piece.box, piece.length)] = tensor.to(device)
        except CommbenchError as error:
            failure = error
        if not all_succeeded(failure is None):
            raise failure or OtherRankFailed(f"another rank could not read {found.folder}", hint="its error says why")
        boxes = [_edges(box, length) if wants else None for box, length, wants in (wanted[name] for name in names)]
        for name, tensor_ in zip(names, comm.reshard_boxes(held, boxes), strict=True):
            if tensor_ is not None:
                yield name, tensor_


def _readers(found: Checkpoint, kind: str, names: list[str], ranks: int) -> dict[str, list[_Piece]]:
    """Share out all pieces, the largest first, each to the rank that has the least to read."""
    every = [(name, box, length) for name in names for box, length in found.pieces(f"{kind}/{name}")]
    load = [0] * ranks
    shared: dict[str, list[_Piece]] = {name: [] for name in names}
    for name, box, length in sorted(every, key=lambda one: -math.prod(one[2])):
        reader = load.index(min(load))
        load[reader] += math.prod(length)
        shared[name].append(_Piece(name, box, length, reader))
    return shared


def _batches(wanted: Wanted) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for name, (box, _, _) in wanted.items():
        size += math.prod(box.shape)
        batch.append(name)
        if size >= _AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _edges(box: Box, length: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((start, start + size) for start, size in zip(box.start, length, strict=True))
