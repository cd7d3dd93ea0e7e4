"""Tensors from one placement on ranks to another: `Communicator.reshard`, and what reads checkpoints stands on it.

All tensors of a call travel together: parts that the same ranks hold and the same ranks want are one message.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from commbench import algorithms
from commbench.algorithms.reshard_plan import Planned, bind_plan
from commbench.collectives import meshes
from commbench.collectives.meshes import Box, Piece, RankMesh, Shared
from commbench.errors import UsageError, unknown
from commbench.layout import Layout
from commbench.transports.base import Comm

DEFAULT = "broadcast_chain"
_ALIGNED = 16  # bytes, of each message's beginning
_MOST_DIMS = 8
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip

# A mesh in the grammar of the collective; or a DeviceMesh (or the ranks as nested lists) with a placement for each of
# its dimensions, as a DTensor has them.
Place = str | tuple[Any, Sequence[Any]]
Gather = Callable[[Sequence[float]], Any]  # every rank's numbers: an array of ranks x numbers


class TensorMove(NamedTuple):
    """A tensor on its way: its dtype, and who has which boxes of it before and after. The same on all ranks."""

    dtype: torch.dtype
    src: Shared
    dst: Shared


def place(given: Place, *, last_of: int | None = None) -> RankMesh:
    """Return the mesh that a caller means. last_of: without `@K` it is on the last of so many ranks.

    Raises `UsageError`.
    """
    if isinstance(given, str):
        mesh = meshes.parse(given)
        if "@" in given or last_of is None:
            return mesh
        return meshes.parse(given, first=max(0, last_of - len(mesh.ranks)))
    ranks, placements = given
    numbers = torch.as_tensor(getattr(ranks, "mesh", ranks), device="cpu")
    cuts = tuple(_cut(placement) for placement in placements)
    if len(cuts) != numbers.dim():
        raise UsageError(f"{len(cuts)} placements of a mesh of {numbers.dim()} dimensions", hint="one for each")
    return RankMesh(tuple(numbers.flatten().tolist()), tuple(numbers.shape), cuts)


def _cut(placement: Any) -> int | None:
    if placement is None or (hasattr(placement, "is_replicate") and placement.is_replicate()):
        return None
    if hasattr(placement, "is_shard") and placement.is_shard() and type(placement).__name__ == "Shard":
        return int(placement.dim)
    raise UsageError(f"a placement is {placement!r}", hint="Shard(dim) or Replicate(); sum a Partial() first")


def algorithm_of(name: str, params: Mapping[str, int]) -> tuple[Planned, dict[str, int]]:
    """Return an algorithm with its parameters, defaults where none are given. Raises `UsageError`."""
    found = algorithms.get("reshard", name)
    if not isinstance(found, Planned):
        raise UsageError(f"reshard by {name}: its messages are not known before", hint=DEFAULT)
    for key, value in params.items():
        if key not in found.params:
            raise unknown(f"parameter of {name}", key, found.params)
        if not isinstance(value, int) or value < 0 or (key == "chunks" and not value):
            raise UsageError(f"{key} is {value!r}", hint="a whole number, chunks of 1 or more")
    return found, {key: default for key, (default, _) in found.params.items()} | dict(params)


def reshard(
    world: Comm, gather: Gather, layout: Layout, device: torch.device, tensors: Sequence[Tensor | None] | None,
    src: Place | Sequence[Place], dst: Place | Sequence[Place], algorithm: str, params: Mapping[str, int],
) -> list[Tensor | None]:  # fmt: skip
    """Return this rank's parts on `dst` of tensors of which it has parts on `src`. Collective: see `Communicator`."""
    failure: UsageError | None = None
    ways, text = [], ""
    try:
        way, settled = algorithm_of(algorithm, params)
        given = [None] * _count(src, dst) if tensors is None else [*tensors]
        many = [_each(item, len(given)) for item in (src, dst)]
        ways = [(place(one), place(other, last_of=layout.ranks)) for one, other in zip(*many, strict=True)]
        text = f"{ways} {algorithm} {sorted(settled.items())}"
        _check_ranks(ways, layout.ranks)
        told = [number for tensor in given for number in _told(tensor, device)]
    except (UsageError, TypeError, ValueError) as error:
        failure = UsageError(f"reshard: {error}", hint=getattr(error, "hint", ""))
    number = float(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))
    first = gather([float(failure is not None), float(len(ways)), number])
    if failure is not None:
        raise failure
    if first[:, 0].any():
        raise UsageError("reshard: another rank asks for what cannot be", hint="its error says what")
    if len({tuple(row) for row in first.tolist()}) > 1:
        raise UsageError("reshard: the ranks ask for different things",
                         hint="as many tensors, the same meshes and the same algorithm on all of them")  # fmt: skip
    if not ways:
        return []
    found = gather(told).reshape(layout.ranks, len(ways), _MOST_DIMS + 2).astype(int).tolist()
    lengths = [_lengths(index, way_[0], [row[index] for row in found]) for index, way_ in enumerate(ways)]
    moves = []
    for index, (here, there) in enumerate(ways):
        dtype = _DTYPES[found[here.ranks[0]][index][1]]
        moves.append(TensorMove(dtype, meshes.shared(here, lengths[index]), meshes.shared(there, lengths[index])))
    mine = [
        {} if tensor is None else {here.boxes(length)[world.rank]: tensor.detach()}
        for tensor, (here, _), length in zip(given, ways, lengths, strict=True)
    ]
    out = exchange(world, layout, device, moves, mine, way, settled)
    return [next(iter(boxes.values()), None) for boxes in out]


def exchange(
    world: Comm, layout: Layout, device: torch.device, moves: Sequence[TensorMove],
    mine: Sequence[Mapping[Box, Tensor]], way: Planned, params: Mapping[str, int],
) -> list[dict[Box, Tensor]]:  # fmt: skip
    """Return of each tensor the boxes that this rank wants; `mine` has those that it holds. Collective, `moves` alike.

    Several boxes of a tensor may be one rank's before, not after.
    """
    groups = _groups(moves)
    sized = [
        (Piece(((0, nbytes),), holders, receivers), nbytes)
        for (holders, receivers), members in groups.items()
        if (nbytes := _padded(sum(part.nbytes(moves) for part in members)))
    ]
    hops = way.hops(sized, layout, params)
    bound = bind_plan(world, sized, hops)
    me = world.rank
    held, wanted = ([members for key, members in groups.items() if me in key[side]] for side in (0, 1))
    inp, out = (
        torch.empty(
            sum(_padded(sum(part.nbytes(moves) for part in members)) for members in side),
            dtype=torch.uint8, device=device,
        )
        for side in (held, wanted)
    )  # fmt: skip
    for part, flat in _flats(held, moves, inp):
        box, tensor = next((box, one) for box, one in mine[part.tensor].items() if _inside(part.box, box))
        flat.copy_(tensor[_within(part.box, box)])
    bound.start(out, inp).wait()
    bound.close()
    results: list[dict[Box, Tensor]] = [
        {
            box: torch.empty([end - begin for begin, end in box], dtype=move.dtype, device=device)
            for box, ranks in move.dst
            if me in ranks
        }
        for move in moves
    ]
    for part, flat in _flats(wanted, moves, out):
        box, tensor = next((box, one) for box, one in results[part.tensor].items() if _inside(part.box, box))
        tensor[_within(part.box, box)] = flat
    return results


def reshard_boxes(
    world: Comm, gather: Gather, layout: Layout, device: torch.device, held: Sequence[Mapping[Box, Tensor]],
    wanted: Sequence[Box | None],
) -> list[Tensor | None]:  # fmt: skip
    """Return of each tensor the box that this rank wants. Collective: see `Communicator.reshard_boxes`."""
    mine = [_record(index, box, _DTYPES.index(one.dtype)) for index, has in enumerate(held) for box, one in has.items()]
    wishes = [_record(index, box, -1) for index, box in enumerate(wanted) if box is not None]
    most = gather([float(len(mine)), float(len(wishes)), float(len(wanted))])
    if len({*most[:, 2].tolist()}) > 1:
        raise UsageError("reshard: the ranks ask for different numbers of tensors", hint="the same tensors on all")
    empty = _record(-1, (), -1)
    tables = [
        gather([*itertools.chain(*records, *[empty] * (int(many.max()) - len(records)))])
        .reshape(layout.ranks, -1, len(empty)).astype(int).tolist()
        for records, many in ((mine, most[:, 0]), (wishes, most[:, 1]))
    ]  # fmt: skip
    boxes: list[tuple[dict[Box, list[int]], dict[Box, list[int]]]] = [({}, {}) for _ in wanted]
    kinds: dict[int, int] = {}
    for side, table in enumerate(tables):
        for rank, records in enumerate(table):
            for index, kind, dims, *edges in records:
                if index < 0:
                    continue
                box = tuple((edges[2 * dim], edges[2 * dim + 1]) for dim in range(dims))
                boxes[index][side].setdefault(box, []).append(rank)
                if not side and kinds.setdefault(index, kind) != kind:
                    raise UsageError(f"reshard: boxes of tensor {index} differ in dtype", hint="one tensor, cut")
    moves = [
        TensorMove(
            _DTYPES[kinds.get(index, 0)], *([(box, tuple(ranks)) for box, ranks in side.items()] for side in both)
        )
        for index, both in enumerate(boxes)
    ]
    for index, move in enumerate(moves):
        for box, _ in move.dst:
            found = sum(piece.elements for piece in meshes.common(move.src, [(box, (0,))]))
            if found != _elements(box):
                raise UsageError(
                    f"reshard: of tensor {index}, box {box} has {_elements(box)} elements, and ranks hold "
                    f"{found} of them, counted where they are held twice",
                    hint="each element once",
                )
    way, params = algorithm_of(DEFAULT, {})
    results = exchange(world, layout, device, moves, held, way, params)
    return [None if box is None else found[box] for box, found in zip(wanted, results, strict=True)]


def _record(index: int, box: Box, kind: int) -> list[float]:
    edges = [float(edge) for pair in box for edge in pair]
    return [float(index), float(kind), float(len(box)), *edges, *[0.0] * (2 * _MOST_DIMS - len(edges))]


def _elements(box: Box) -> int:
    return math.prod(end - begin for begin, end in box)


class _Part(NamedTuple):
    """A part of one tensor that goes from the same ranks to the same ranks."""

    tensor: int
    box: Box

    def nbytes(self, moves: Sequence[TensorMove]) -> int:
        return _elements(self.box) * moves[self.tensor].dtype.itemsize


_Group = tuple[tuple[int, ...], tuple[int, ...]]  # holders, receivers


def _groups(moves: Sequence[TensorMove]) -> dict[_Group, list[_Part]]:
    """Return all parts by who holds and who wants them: wide elements first, so that all are aligned."""
    found: dict[_Group, list[_Part]] = {}
    for index in sorted(range(len(moves)), key=lambda index: -moves[index].dtype.itemsize):
        for piece in meshes.common(moves[index].src, moves[index].dst):
            found.setdefault((piece.holders, piece.receivers), []).append(_Part(index, piece.box))
    return found


def _flats(
    groups: Sequence[Sequence[_Part]], moves: Sequence[TensorMove], buffer: Tensor
) -> list[tuple[_Part, Tensor]]:
    """Return each part with its place in the buffer, as a tensor of its shape."""
    found, start = [], 0
    for members in groups:
        at = start
        for part in members:
            nbytes = part.nbytes(moves)
            shape = [end - begin for begin, end in part.box]
            found.append((part, buffer[at : at + nbytes].view(moves[part.tensor].dtype).view(shape)))
            at += nbytes
        start += _padded(at - start)
    return found


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED) * _ALIGNED


def _inside(part: Box, box: Box) -> bool:
    return all(a <= c and d <= b for (a, b), (c, d) in zip(box, part, strict=True))


def _within(part: Box, box: Box) -> tuple[slice, ...]:
    """Return where a part lies in the tensor of a box."""
    return tuple(slice(c - a, d - a) for (a, _), (c, d) in zip(box, part, strict=True))


def _count(*places: Place | Sequence[Place]) -> int:
    return max((len(one) for one in places if isinstance(one, list)), default=1)


def _each(given: Place | Sequence[Place], count: int) -> list[Place]:
    """Return a place for each tensor: a list has one for each, anything else is that of all."""
    if not isinstance(given, list):
        return [given] * count  # type: ignore[list-item]
    if len(given) != count:
        raise UsageError(f"{len(given)} meshes for {count} tensors", hint="a list has one for each; or one for all")
    return given


def _check_ranks(ways: Sequence[tuple[RankMesh, RankMesh]], ranks: int) -> None:
    for mesh in itertools.chain.from_iterable(ways):
        if min(mesh.ranks) < 0 or max(mesh.ranks) >= ranks or len({*mesh.ranks}) < len(mesh.ranks):
            raise UsageError(f"a mesh has the ranks {list(mesh.ranks)}", hint=f"each once, of 0 .. {ranks - 1}")


def _told(tensor: Tensor | None, device: torch.device) -> list[float]:
    """Return what a rank tells of its part: dimensions (-1: it has none), dtype, lengths."""
    if tensor is None:
        return [-1.0, 0.0, *[0.0] * _MOST_DIMS]
    if not isinstance(tensor, Tensor) or tensor.device != device or tensor.layout is not torch.strided:
        what = f"on {tensor.device}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise UsageError(f"a tensor is {what}; strided ones on {device} are wanted")
    if tensor.dtype not in _DTYPES or tensor.dim() > _MOST_DIMS:
        raise UsageError(f"a tensor is {tensor.dtype} with {tensor.dim()} dimensions")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise UsageError("a tensor requires a gradient, which would be lost here: call it under torch.no_grad()")
    return [float(tensor.dim()), float(_DTYPES.index(tensor.dtype)), *map(float, tensor.shape),
            *[0.0] * (_MOST_DIMS - tensor.dim())]  # fmt: skip


def _lengths(index: int, src: RankMesh, told: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the lengths of a whole tensor, from what its parts are. Raises `UsageError`, the same on all ranks."""
    holders = {rank for rank, (dims, *_) in enumerate(told) if dims >= 0}
    if holders != {*src.ranks}:
        odd = min(holders ^ {*src.ranks})
        what = "has a part, and is not on src" if odd in holders else "is on src, and has no part"
        raise UsageError(f"reshard: of tensor {index} rank {odd} {what}", hint="None where a rank has no part")
    kinds = {tuple(told[rank][:2]) for rank in src.ranks}
    if len(kinds) > 1:
        raise UsageError(f"reshard: parts of tensor {index} differ in dtype or dimensions", hint="one tensor, cut")
    ((dims, _),) = kinds
    cuts = [cut % dims for cut in src.cuts if cut is not None and -dims <= cut < dims]
    if len(cuts) < sum(cut is not None for cut in src.cuts):
        raise UsageError(f"reshard: tensor {index} has {dims} dimensions, and src cuts another one",
                         hint="ep cuts the first, tp the last")  # fmt: skip
    shapes = {rank: tuple(told[rank][2 : 2 + dims]) for rank in src.ranks}
    whole = [0] * dims
    for dim in range(dims):
        # Ranks that differ in the dimensions of the mesh that cut this one, and in no other, share it out.
        for place_, rank in zip(itertools.product(*map(range, src.shape)), src.ranks, strict=True):
            if all(not at for at, cut in zip(place_, src.cuts, strict=True) if cut is None or cut % dims != dim):
                whole[dim] += shapes[rank][dim]
    for rank, box in src.boxes(whole).items():
        shape = tuple(end - begin for begin, end in box)
        if shape != shapes[rank]:
            raise UsageError(f"reshard: the part of tensor {index} on rank {rank} is {list(shapes[rank])}; a tensor of "
                             f"{whole} has {list(shape)} there", hint="parts as DTensor cuts them")  # fmt: skip
    return tuple(whole)
