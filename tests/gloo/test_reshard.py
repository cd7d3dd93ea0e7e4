"""`comm.reshard` on forked ranks: each element by its number in the whole tensor, and what is refused on all ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

import commbench
from commbench import algorithms
from commbench.collectives import meshes
from commbench.communicators import resharding
from commbench.communicators.communicator import Communicator
from commbench.errors import UsageError
from moe_ref.training.checkpoint import Checkpoint
from moe_ref.training.trainer import Trainer
from tests.gloo.calls import nodes_of, raises
from tests.moe.test_training import TINY
from tests.support.ranks import on_gloo

SHAPES = {  # with lengths that no mesh divides, one dimension and none to cut
    torch.float32: (4, 6, 8), torch.bfloat16: (7, 5), torch.float64: (3,), torch.int64: (5, 1, 2), torch.bool: (9, 3),
}  # fmt: skip
WAYS: list[tuple[Any, Any]] = [
    ("ep2-tp2", "tp2-ep2"), ("dp2@0", "tp2@2"), ("tp3", "dp4"), ("dp2-tp2", "ep3@1"), ("tp1", "dp3"),
    (([[0, 1], [2, 3]], [Shard(0), Shard(0)]), ([3, 2, 1, 0], [Shard(-1)])),
    (([0, 1], [Replicate()]), ([[1, 3], [0, 2]], [Shard(0), Replicate()])),
]  # fmt: skip


def _whole() -> list[Tensor]:
    return [torch.arange(torch.Size(shape).numel()).view(shape).to(dtype) for dtype, shape in SHAPES.items()]


def _parts(given: Any, rank: int, *, last: bool) -> list[Tensor | None]:
    """Cut every tensor for a rank as torch's DTensor does, by `torch.chunk`."""
    mesh = resharding.place(given, last_of=4 if last else None)
    found: list[Tensor | None] = []
    for whole in _whole():
        if rank not in mesh.ranks:
            found.append(None)
            continue
        at, part = mesh.ranks.index(rank), whole
        for size, cut, below in zip(mesh.shape, mesh.cuts, _below(mesh.shape), strict=True):
            if cut is not None:
                pieces = part.chunk(size, cut)
                index = at // below % size
                part = pieces[index] if index < len(pieces) else part.narrow(cut, 0, 0)
        found.append(part.contiguous())
    return found


def _below(shape: tuple[int, ...]) -> list[int]:
    return [int(torch.Size(shape[place + 1 :]).numel()) for place in range(len(shape))]


def _equal(found: list[Tensor | None], right: list[Tensor | None]) -> None:
    for one, other in zip(found, right, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def _refuses(comm: Communicator) -> None:
    me, tensor = comm.rank, torch.ones(4, 4)
    here = [tensor] if me < 2 else None

    def call(*given: Any, **more: Any) -> Any:
        return lambda: comm.reshard(*given, **more)

    raises(UsageError, call(here, "tp2", "xp2"), "is no mesh", "as in tp4-ep2")
    raises(UsageError, call(here, "tp2", "dp8"), "a mesh has the ranks")
    raises(UsageError, call(here, "tp2", "dp2", algorithm="chain"), "chain")
    raises(UsageError, call(here, "tp2", "dp2", chunks=0), "chunks is 0")
    raises(UsageError, call(here, "tp2", "dp2", window=1), "window")
    raises(UsageError, call([tensor], "tp2", "dp2"), "rank 2 has a part, and is not on src")
    raises(UsageError, call(here if me else None, "tp2", "dp2"), "rank 0 is on src, and has no part")
    raises(UsageError, call(here, "tp2", "dp2" if me else "tp2"), "the ranks ask for different things")
    raises(UsageError, call([tensor[: 4 - me]] if me < 2 else None, "tp2", "dp2"), "rank 1 is [3, 4]", "[4, 4] there")
    raises(UsageError, call([tensor.double() if me else tensor] if me < 2 else None, "tp2", "dp2"), "differ in dtype")
    raises(UsageError, call(here, ([0, 1], [Shard(2)]), "dp2"), "src cuts another one")
    bad = [torch.ones(4, 4, requires_grad=True)] if me == 0 else here
    raises(UsageError, call(bad, "tp2", "dp2"), "gradient" if me == 0 else "another rank asks for what cannot be")


def test_tensors_go_from_any_mesh_to_any_other() -> None:
    def rank(transport: Any) -> None:
        nodes_of(2)
        comm = commbench.communicator()
        assert str(comm.layout) == "2x2"
        for src, dst in WAYS:
            right = _parts(dst, comm.rank, last=True)
            given = _parts(src, comm.rank, last=False)
            for name in algorithms.names("reshard"):
                _equal(comm.reshard(given, [src] * len(given), dst, algorithm=name), right)
            _equal(comm.reshard(given, [src] * len(given), dst, chunks=3, balance=0), right)
        assert comm.reshard([], [], []) == []
        _refuses(comm)
        # The ranks are still together.
        (found,) = comm.reshard([torch.tensor([comm.rank])], "ep4", "dp4")
        assert found is not None and found.tolist() == [0, 1, 2, 3]
        comm.close()

    on_gloo(4, rank)


def test_one_rank_hands_its_tensors_to_itself() -> None:
    mesh = meshes.parse("tp1")
    assert meshes.pieces((3, 4), mesh, mesh)[0].lacking == ()


def test_boxes_that_lie_as_they_like() -> None:
    whole = torch.arange(24).view(4, 6)
    held = [{((0, 4), (0, 3)): whole[:, :3]}, {((0, 2), (3, 6)): whole[:2, 3:], ((2, 4), (3, 6)): whole[2:, 3:]}, {}]
    wanted = [((1, 3), (2, 5)), None, ((0, 4), (0, 6))]

    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        me = comm.rank
        (found,) = comm.reshard_boxes([held[me]], [wanted[me]])
        box = wanted[me]
        assert (found is None) == (box is None)
        assert found is None or box is None or torch.equal(found, whole[tuple(slice(*edge) for edge in box)])
        lacking = [{} if me == 0 else held[me]]
        raises(UsageError, lambda: comm.reshard_boxes(lacking, [wanted[me]]), "elements, and ranks hold")
        comm.close()

    on_gloo(3, rank)


@pytest.mark.parametrize(("tp", "zero"), [(1, True), (2, True), (2, False)])
def test_a_training_goes_on_by_reshard_as_it_does_by_files(tp: int, zero: bool, tmp_path: Path) -> None:
    """A checkpoint of one rank on four: all tensors are the same, and each byte is read by one rank alone."""
    one = replace(TINY, heads=4, dtype="fp64")
    trainer = Trainer(one)
    trainer.step()
    folder = trainer.save(tmp_path)
    nbytes = sum(parameter.nbytes for parameter in trainer.model.parameters()) * 3

    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        states, read = [], []
        for way in ("files", "reshard"):
            trainer = Trainer(replace(one, ranks_per_node=4, parts=4 // tp, tp=tp, zero=zero, resume_by=way), comm)
            saved = Checkpoint(folder)
            trainer.load(saved)
            states.append([*trainer.model.parameters()])
            states[-1] += [one for state in trainer.optimizer.states().values() for one in state.values()]
            counted = torch.tensor([saved.read_bytes])
            comm.all_reduce(counted)
            read.append(int(counted))
            trainer.close()
        for first, second in zip(*states, strict=True):
            assert torch.equal(first, second)
        assert read[1] == nbytes < read[0]
        comm.close()

    on_gloo(4, rank)
