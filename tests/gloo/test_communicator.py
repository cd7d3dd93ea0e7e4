"""Communicators on forked ranks over gloo: right results by every way, one scope for all, gradients, memory, errors."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist

import commbench
from commbench import algorithms
from commbench.communicators import make, prepared
from commbench.communicators.communicator import Communicator
from commbench.communicators.loaded import LoadedProfile
from commbench.errors import CommbenchError, EnvironmentProblem, UsageError
from commbench.profile import Choice, Profile, Way, file
from commbench.profile.scope import OutOfScope
from tests import profiles
from tests.bench.ranks import on_gloo
from tests.conftest import REPOSITORY, environment

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64)


def nodes_of(per_node: int) -> None:
    """In a rank: let so many consecutive ranks think that they share a host."""
    make.host = lambda: f"host-{dist.get_rank() // per_node}"  # type: ignore[assignment]


def by(*choices: Choice, **scope: Any) -> Communicator:
    return LoadedProfile(profiles.profile(*choices, **scope)).communicator()


def raises(kind: type[BaseException], call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    text = f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert all(word in text for word in words), text


def close(found: torch.Tensor | None, want: torch.Tensor) -> None:
    """torch.testing says more, and takes seconds to import in every rank."""
    assert found is not None and found.shape == want.shape and torch.allclose(found, want, rtol=1e-9), (found, want)


def numbers(rank: int, *shape: int, dtype: torch.dtype = torch.float32, salt: int = 0) -> torch.Tensor:
    """What a rank brings: other numbers on every rank and in every call."""
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


def check_all_to_all(comm: Communicator, rows: int, *, dtype: torch.dtype = torch.float32, calls: int = 4) -> None:
    """On the same buffers several times, so that the ways of fresh tensors and of seen ones are both taken."""
    n = comm.size
    out, inp = torch.empty(n * rows, dtype=dtype), torch.empty(n * rows, dtype=dtype)
    for salt in range(calls):
        inp.copy_(numbers(comm.rank, n * rows, dtype=dtype, salt=salt))
        out.zero_()
        comm.all_to_all(out, inp)
        parts = [numbers(src, n * rows, dtype=dtype, salt=salt)[comm.rank * rows :][:rows] for src in range(n)]
        assert torch.equal(out, torch.cat(parts)), (rows, dtype, salt)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_without_a_profile_everything_is_right(ranks: int) -> None:
    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        n, me = comm.size, comm.rank
        for dtype in DTYPES:
            check_all_to_all(comm, 5, dtype=dtype)
        matrix = [[(2 * i + 3 * j) % 4 for j in range(n)] for i in range(n)]
        for known in (None, matrix):
            for salt in range(3):
                check_all_to_allv(comm, matrix, known, salt)
        for salt in range(3):
            inp = numbers(me, 2, 3, salt=salt)
            gathered = torch.empty(n * 2, 3)
            comm.all_gather(gathered, inp)
            everything = torch.cat([numbers(src, 2, 3, salt=salt) for src in range(n)])
            assert torch.equal(gathered, everything)
            scattered = torch.empty(1, 3)
            whole = [numbers(src, n, 3, salt=salt) for src in range(n)]
            for op, combine in (("sum", torch.sum), ("max", torch.amax)):
                total = combine(torch.stack(whole), dim=0)
                comm.reduce_scatter(scattered, whole[me], op)
                assert torch.equal(scattered, total[me : me + 1])
                out = torch.empty(n, 3)
                comm.all_reduce(out, whole[me], op)
                assert torch.equal(out, total)
                in_place = whole[me].clone()
                comm.all_reduce(in_place, op=op)
                assert torch.equal(in_place, total)
            both = torch.zeros(n, 3)
            both[me] = inp[0]
            comm.all_gather(both, both[me])
            assert torch.equal(both, everything[::2])
            for root in {0, n - 1}:
                sent = numbers(me, 7, dtype=torch.int64, salt=salt)
                comm.broadcast(sent, root)
                assert torch.equal(sent, numbers(root, 7, dtype=torch.int64, salt=salt))
        comm.all_to_all(torch.empty(0, 4), torch.empty(0, 4))
        assert "no profile: the default" in comm.explain()
        pending = comm.all_to_all(torch.empty(n), torch.empty(n), async_op=True)
        assert pending is not None
        pending.wait()
        world = weakref.ref(comm._transport.world)
        comm.close()
        gc.collect()
        assert world() is None, "what a program still holds of a closed communicator holds its group"
        raises(UsageError, lambda: comm.all_to_all(torch.empty(n), torch.empty(n)), "closed")

    on_gloo(ranks, rank)


def check_all_to_allv(
    comm: Communicator, matrix: list[list[int]], known: list[list[int]] | None, salt: int, width: int = 4
) -> None:
    """Twice on the same buffers. All counts of a rank may be 0."""
    me, n = comm.rank, comm.size
    sent, received = matrix[me], [row[me] for row in matrix]
    inp = numbers(me, sum(sent), width, salt=salt)
    out = torch.empty(sum(received), width)
    parts = []
    for src in range(n):
        start = sum(matrix[src][:me])
        parts.append(numbers(src, sum(matrix[src]), width, salt=salt)[start : start + matrix[src][me]])
    for _ in range(3):
        out.zero_()
        comm.all_to_allv(out, inp, received, sent, matrix=known)
        assert torch.equal(out, torch.cat(parts))


def ways(collective: str) -> list[str]:
    return [name for name in algorithms.names(collective) if not algorithms.get(collective, name).one_sided]


def test_every_way_of_a_profile_on_two_nodes() -> None:
    def rank(transport: Any) -> None:
        nodes_of(2)
        for name in ways("all_to_all"):
            comm = by(profiles.choice("all_to_all", name), nodes=2, ranks_per_node=2)
            for rows in (16, 64, 5):  # floats, so that blocks are whole units of 16 B or not
                check_all_to_all(comm, rows)
            told = comm.explain()
            assert f"all_to_all, 1 KiB: {name}" in told, told
            odd = next(line for line in told.splitlines() if line.startswith("all_to_all, 80 B"))
            assert ("direct" if name == "2d_pipelined" else name) in odd, told
            assert ("no whole number of pieces of 16 B" in told) == (name == "2d_pipelined")
        matrix = [[(i + 2 * j) % 4 for j in range(4)] for i in range(4)]
        for name in ways("all_to_allv"):
            comm = by(profiles.choice("all_to_allv", name), nodes=2, ranks_per_node=2)
            for known in (None, matrix, [list(column) for column in zip(*matrix, strict=True)]):
                check_all_to_allv(comm, known or matrix, known, 0)
            assert f": {name}" in comm.explain()
            assert "without matrix=, ranks do not know" in comm.explain()
            assert comm.exchange_counts(matrix[comm.rank]) == matrix
        for tp_input in ("replicated", "partial"):
            for name in ways("tp_all_to_all"):
                algorithm = algorithms.get("tp_all_to_all", name)
                if algorithm.demands["tp_input"] != tp_input:
                    continue
                arguments = {"tp": 2, "tp_input": tp_input}
                comm = by(profiles.choice("tp_all_to_all", name, arguments=arguments, params={"chunks": 2}
                          if "chunks" in algorithm.params else {}))  # fmt: skip
                check_tp(comm, tp_input)
                assert f": {name}" in comm.explain()
        comm = commbench.communicator()
        check_tp(comm, "replicated")
        check_tp(comm, "partial")
        raises(UsageError, lambda: comm.tp_all_to_all(torch.empty(8), torch.empty(8), tp=3), "tp=3", "do not divide")
        raises(
            UsageError,
            lambda: comm.tp_all_to_all(torch.empty(6), torch.empty(6), tp=2, tp_input="partial"),
            "no algorithm", "no whole number",
        )  # fmt: skip

    on_gloo(4, rank)


def check_tp(comm: Communicator, tp_input: str, dtype: torch.dtype = torch.float64) -> None:
    """Two groups of two ranks; a block of 64 elements for each."""
    group = comm.rank // 2
    for salt in range(3):
        if tp_input == "replicated":
            inp = numbers(group, 2, 64, dtype=dtype, salt=salt)
            want = [numbers(src, 2, 64, dtype=dtype, salt=salt)[group] for src in range(2)]
        else:
            inp = numbers(comm.rank, 2, 64, dtype=dtype, salt=salt)
            summands = [numbers(src, 2, 64, dtype=dtype, salt=salt)[group] for src in range(4)]
            want = [summands[0] + summands[1], summands[2] + summands[3]]
        out = torch.empty(2, 64, dtype=dtype)
        comm.tp_all_to_all(out, inp, tp=2, tp_input=tp_input)
        assert torch.equal(out, torch.stack(want)), (tp_input, salt)


def test_ranges_and_calls_in_flight() -> None:
    """Calls of one kind share scratch, so that the second begins when the first has ended."""

    def rank(transport: Any) -> None:
        nodes_of(2)
        comm = by(
            profiles.choice("all_to_all", "bruck", 0, 1023),
            profiles.choice("all_to_all", "2d_intra_first", 1024, 65535),
            profiles.choice("all_to_all", "direct", 65536),
        )
        for rows in (8, 256, 8192):
            check_all_to_all(comm, rows)
            inputs = [numbers(comm.rank, 4 * rows, salt=salt) for salt in range(3)]
            outputs = [torch.empty(4 * rows) for _ in range(3)]
            works = [comm.all_to_all(out, inp, async_op=True) for out, inp in zip(outputs, inputs, strict=True)]
            for work in [*works[::-1], *works]:
                assert work is not None
                work.wait()
            for salt, out in enumerate(outputs):
                parts = [numbers(src, 4 * rows, salt=salt)[comm.rank * rows :][:rows] for src in range(4)]
                assert torch.equal(out, torch.cat(parts)), (rows, salt)
        told = comm.explain()
        for line in ("all_to_all, 128 B: bruck", "all_to_all, 4 KiB: 2d_intra_first", "all_to_all, 128 KiB: direct"):
            assert line in told, told
        assert "the profile's choice for 1024 .. 65535 B" in told
        assert "2d_intra_first 1.50 times as fast as direct (1.40 .. 1.60, 12 pairs) at 4 KiB" in told

    on_gloo(4, rank)


def test_a_profile_from_elsewhere_is_refused_on_all_ranks(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    elsewhere = {"nodes": 2, "ranks_per_node": 4, "versions": {"torch": "1.0"}, "env": {"NCCL_X": "1"}}
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise"), **elsewhere), path)

    def rank(transport: Any) -> None:
        words = ("nodes: the profile is for 2, here is 1", "torch version: the profile is for 1.0", "allow_mismatch")
        raises(OutOfScope, lambda: commbench.load_profile(path).communicator(), str(path), *words)
        comm = commbench.communicator(profile=path, allow_mismatch=True)
        check_all_to_all(comm, 4)
        told = comm.explain()
        assert "insisted, though nodes: the profile is for 2, here is 1" in told
        assert "insisted, though NCCL_X: the profile is for 1, here is unset" in told
        assert "all_to_all, 32 B: pairwise window=1" in told
        comm.close()

    on_gloo(2, rank)


def test_what_is_wrong_on_one_rank_is_raised_on_all() -> None:
    def rank(transport: Any) -> None:
        import os

        me = dist.get_rank()
        asks = profiles.profile(profiles.choice("all_to_all", "direct"), env={"NCCL_X": "1"})
        if me == 0:
            os.environ["NCCL_X"] = "1"
        words = ("NCCL_X: the profile is for 1, here is unset",)
        raises(OutOfScope, lambda: LoadedProfile(asks).communicator(), *words, *(["rank 1: "] if me == 0 else []))
        own = replace(asks, machine=f"that of rank {me}")
        raises(UsageError, lambda: LoadedProfile(own).communicator(), "different profiles")
        two = replace(
            asks,
            scopes=[replace(asks.scopes[0], id="a"), replace(asks.scopes[0], id="b", env={"NCCL_X": "unset"})],
            choices=[profiles.choice("all_to_all", "direct", scope="a")],
        )
        raises(OutOfScope, lambda: LoadedProfile(two).communicator(), "different scopes", "a, b")
        make.host = (lambda: 1 / 0) if me == 1 else make.host  # type: ignore[assignment,return-value]
        raises(EnvironmentProblem, lambda: commbench.communicator(), "ZeroDivisionError")

    on_gloo(2, rank)


def test_ranks_that_are_not_in_blocks_on_their_hosts_count_as_nodes() -> None:
    def rank(transport: Any) -> None:
        make.host = lambda: f"host-{dist.get_rank() % 2}"  # type: ignore[assignment]
        comm = by(profiles.choice("all_to_all", "2d_intra_first"))
        check_all_to_all(comm, 4)
        assert (comm.layout.nodes, comm.layout.ranks_per_node) == (4, 1)
        assert "note: the 4 ranks are on 2 hosts, not in consecutive blocks" in comm.explain()
        assert "2d_intra_first cannot do this: layout 4x1: two levels need" in comm.explain()
        narrow = LoadedProfile(profiles.profile(profiles.choice("all_to_all", "direct"), nodes=2, ranks_per_node=2))
        raises(OutOfScope, narrow.communicator, "nodes: the profile is for 2, here is 4", "not in consecutive blocks")

    on_gloo(4, rank)
    assert make.layout_of(["a", "a", "b"])[1].startswith("the 3 ranks are on 2 hosts with 1, 2 ranks each")


def test_wrong_tensors_never_reach_the_library() -> None:
    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        a, b = torch.empty(4, 2), torch.empty(4, 2)
        raises(UsageError, lambda: comm.all_to_all([1.0], b), "out is a list")  # type: ignore[arg-type]
        raises(UsageError, lambda: comm.all_to_all(a, b.to("meta")), "inp is on meta", "on cpu")
        raises(UsageError, lambda: comm.all_to_all(a, torch.empty(2, 4).t()), "inp is not contiguous", "(4, 2)")
        raises(UsageError, lambda: comm.all_to_all(a, b.to_sparse()), "not contiguous", "sparse")
        raises(UsageError, lambda: comm.all_to_all(a, b.double()), "out is torch.float32, inp is torch.float64")
        raises(UsageError, lambda: comm.all_to_all(a, torch.empty(6)), "8 elements", "6")
        raises(UsageError, lambda: comm.all_to_all(torch.empty(3), torch.empty(3)), "no 2 equal blocks", "all_to_allv")
        raises(UsageError, lambda: comm.all_to_all(a, a), "overlap")
        raises(UsageError, lambda: comm.all_to_all(a, b.requires_grad_()), "would be lost", "comm.autograd.all_to_all")
        with torch.no_grad():
            comm.all_to_all(a, b)
            comm.all_to_all(a, b)
        b = b.detach()
        v = comm.all_to_allv
        raises(UsageError, lambda: v(a, torch.empty(4, 3), [2, 2], [2, 2]), "(4, 2)", "(4, 3)")
        raises(UsageError, lambda: v(a, b, [2, 2, 0], [2, 2]), "received is [2, 2, 0]", "2 counts")
        raises(UsageError, lambda: v(a, b, [2, 2], [5, -1]), "sent is [5, -1]")
        raises(UsageError, lambda: v(a, b, [2, 1], [2, 2]), "received adds up to 3 rows, and out has 4")
        raises(UsageError, lambda: v(a, b, [2, 2], [2, 2], matrix=[[1, 3], [3, 1]]), "by matrix rank")
        raises(UsageError, lambda: comm.all_gather(a, b), "out has 8 elements", "2 times")
        raises(UsageError, lambda: comm.reduce_scatter(a, torch.empty(4, 2).bool(), "sum"), "out is torch.float32")
        raises(UsageError, lambda: comm.all_reduce(a.bool(), b.bool()), "does not combine torch.bool")
        raises(UsageError, lambda: comm.all_reduce(a, b, "avg"), "op is 'avg'", "sum, prod")
        raises(UsageError, lambda: comm.broadcast(a, 2), "root is 2", "0 .. 1")
        raises(UsageError, lambda: comm.tp_all_to_all(a, b), "tp=2")
        raises(UsageError, lambda: comm.tp_all_to_all(a, b, tp_input="half"), "replicated or partial")
        raises(UsageError, lambda: comm.prepare("sendrecv", a, b), "sendrecv", "all_to_all")
        check_all_to_all(comm, 3)  # nothing was sent

    on_gloo(2, rank)


def test_buffers_are_seen_by_what_they_are_and_die_when_the_program_drops_them() -> None:
    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        calls = comm._calls
        out, inp = torch.empty(8), numbers(comm.rank, 8)
        for _ in range(3):
            comm.all_to_all(out, inp)
        assert len(calls.seen) == 1
        kept = torch.empty(16)
        want = torch.cat([numbers(src, 8).view(2, 4)[comm.rank] for src in range(2)])
        assert torch.equal(out, want)
        # The same object, elsewhere, of another length, of other strides.
        out.data = kept[:8]
        comm.all_to_all(out, inp)
        assert torch.equal(kept[:8], want)
        inp.resize_(4)
        raises(UsageError, lambda: comm.all_to_all(out, inp), "8 elements", "4")
        square = [torch.empty(2, 4), numbers(comm.rank, 2, 4)]
        for _ in range(3):
            comm.all_to_all(*square)
        square[1].t_()
        raises(UsageError, functools.partial(comm.all_to_all, *square), "not contiguous")
        before, at = len(calls.seen), square[0].data_ptr()
        square.clear()
        gc.collect()
        assert len(calls.seen) == before - 1
        views = [held for held in gc.get_objects() if type(held) is torch.Tensor and held.data_ptr() == at]
        assert not views  # nothing of ours keeps its memory
        for number in range(200):  # ids and addresses come again
            check_all_to_all(comm, 1 + number % 3, calls=3)
        assert len(calls.seen) <= 2
        comm.close()
        assert not calls.seen

    on_gloo(2, rank)


def test_what_is_prepared_is_forgotten_alike_on_all_ranks() -> None:
    """Ranks whose tensors live differently long take different ways through the caches, and must not part."""

    def rank(transport: Any) -> None:
        nodes_of(2)
        prepared.KEPT, prepared.KEPT_UNEVEN = 3, 2
        comm = by(profiles.choice("all_to_all", "2d_intra_first"), profiles.choice("all_to_allv", "pairwise"))
        buffers = {rows: (torch.empty(4 * rows), torch.empty(4 * rows)) for rows in range(1, 8)}
        order = [1, 2, 3, 1, 4, 1, 5, 2, 1, 6, 3, 7, 1, 1, 2, 5] * 3
        closed = 0
        real = prepared.Prepared.close

        def close(self: Any) -> None:
            nonlocal closed
            closed += 1
            real(self)

        prepared.Prepared.close = close  # type: ignore[method-assign]
        for step, rows in enumerate(order):
            out, inp = buffers[rows] if (comm.rank + step) % 3 else (torch.empty(4 * rows), torch.empty(4 * rows))
            inp.copy_(numbers(comm.rank, 4 * rows, salt=step))
            comm.all_to_all(out, inp)
            parts = [numbers(src, 4 * rows, salt=step)[comm.rank * rows :][:rows] for src in range(4)]
            assert torch.equal(out, torch.cat(parts)), (step, rows)
            matrix = [[(i + j + step) % 3 for j in range(4)] for i in range(4)]
            check_all_to_allv(comm, matrix, matrix, step)
        assert {*transport.all_gather([float(closed)])[:, 0].tolist()} == {closed} and closed > 20

    on_gloo(4, rank)


def test_ranks_that_call_different_things_are_told_so() -> None:
    def rank(transport: Any) -> None:
        comm = by(profiles.choice("all_to_all", "bruck"))
        n = 8 if comm.rank else 16
        words = ("different things", f"all_to_all, {4 * n} B: bruck")
        raises(UsageError, lambda: comm.all_to_all(torch.empty(n), torch.empty(n)), *words)
        check_all_to_all(comm, 3)

    on_gloo(2, rank)


def test_memory_that_one_rank_lacks() -> None:
    def rank(transport: Any) -> None:
        nodes_of(1)
        comm = by(profiles.choice("all_to_all", "bruck"))
        if comm.rank == 1:
            real = comm._transport.world.empty
            comm._transport.world.empty = lambda *_, **__: (_ for _ in ()).throw(MemoryError("none left"))
        out, inp = torch.empty(8), torch.empty(8)
        words = "none left" if comm.rank == 1 else "another rank lacks memory"
        raises(MemoryError, lambda: comm.all_to_all(out, inp), "bruck", words)
        if comm.rank == 1:
            comm._transport.world.empty = real
        check_all_to_all(comm, 2)

    on_gloo(2, rank)


def test_groups_of_ranks_have_communicators_of_their_own() -> None:
    def rank(transport: Any) -> None:
        me = dist.get_rank()
        groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        comm = commbench.communicator(groups[me % 2])
        assert (comm.rank, comm.size) == (me // 2, 2)
        check_all_to_all(comm, 4)
        raises(UsageError, lambda: commbench.communicator(groups[(me + 1) % 2]), "no rank of the group")
        # Communicators of all ranks and of some, in turn.
        world = commbench.communicator()
        for _ in range(3):
            check_all_to_all(world, 4)
            check_all_to_all(comm, 8)
        comm.close()
        with world:
            check_all_to_all(world, 2)

    on_gloo(4, rank)


def test_ranks_in_different_numbers_of_groups_are_told_before_torch_hangs() -> None:
    def rank(transport: Any) -> None:
        nodes_of(2)
        dist.new_group([0, 1])
        comm = by(profiles.choice("all_to_all", "2d_intra_first"))
        raises(EnvironmentProblem, lambda: check_all_to_all(comm, 4), "3, 3, 2, 2 process groups")

    on_gloo(4, rank)


# Gradients


def dense(collective: str, inputs: list[torch.Tensor], **asked: Any) -> list[torch.Tensor]:
    """All ranks' outputs, in plain torch."""
    n = len(inputs)
    whole = torch.stack(inputs) if collective != "all_to_allv" else None
    match collective:
        case "all_to_all":
            return [torch.cat([x.chunk(n)[rank] for x in inputs]) for rank in range(n)]
        case "all_to_allv":
            matrix = asked["matrix"]
            parts = [x.split(row) for x, row in zip(inputs, matrix, strict=True)]
            return [torch.cat([row[rank] for row in parts]) for rank in range(n)]
        case "all_gather":
            return [torch.cat(inputs)] * n
        case "all_reduce":
            assert whole is not None
            return [whole.sum(0)] * n
        case "reduce_scatter":
            assert whole is not None
            return list(whole.sum(0).chunk(n))
    raise AssertionError(collective)


def loss_of(out: torch.Tensor, rank: int) -> torch.Tensor:
    """Of one rank; nothing about it is linear or the same on two ranks."""
    weights = torch.arange(1, out.numel() + 1, dtype=out.dtype).reshape(out.shape)
    return (weights * (out * (0.7 + 0.1 * rank)).sin()).sum() / (rank + 1)


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_are_those_of_dense_torch(ranks: int) -> None:
    matrix = [[(i + 2 * j) % 3 for j in range(ranks)] for i in range(ranks)]

    def inputs_of(collective: str) -> list[torch.Tensor]:
        rows = [sum(row) for row in matrix] if collective == "all_to_allv" else [2 * ranks] * ranks
        return [numbers(r, rows[r], 3, dtype=torch.float64) / 50 for r in range(ranks)]

    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        me = comm.rank
        counts = {"received": [row[me] for row in matrix], "sent": matrix[me]}
        for collective in ("all_to_all", "all_to_allv", "all_gather", "reduce_scatter", "all_reduce"):
            variants: list[dict[str, Any]] = [{}]
            if collective == "all_to_allv":
                variants = [counts, {**counts, "matrix": matrix}]
            for asked in variants:
                everybody = [x.requires_grad_() for x in inputs_of(collective)]
                outputs = dense(collective, everybody, matrix=matrix)
                total = sum(loss_of(out, r) for r, out in enumerate(outputs))
                assert isinstance(total, torch.Tensor)
                want = torch.autograd.grad(total, everybody, create_graph=True)
                # Of the gradients, too: a penalty on their squares, say.
                second = torch.autograd.grad(sum(g.square().sum() for g in want), everybody)  # type: ignore[arg-type]
                mine = inputs_of(collective)[me].requires_grad_()
                out = getattr(comm.autograd, collective)(mine, **asked)
                close(out, outputs[me])
                (got,) = torch.autograd.grad(loss_of(out, me), mine, create_graph=True)
                close(got, want[me])
                (again,) = torch.autograd.grad(got.square().sum(), mine)
                close(again, second[me])
                finite_differences(comm, collective, mine.detach(), got.detach(), asked)

    on_gloo(ranks, rank)


def finite_differences(
    comm: Communicator, collective: str, inp: torch.Tensor, gradient: torch.Tensor, asked: dict[str, Any]
) -> None:
    """gradcheck over ranks: one element of one rank's input after the other is moved, and all losses are summed."""
    step = 1e-6

    def total(moved: torch.Tensor) -> float:
        loss = loss_of(getattr(comm.autograd, collective)(moved, **asked), comm.rank).reshape(1)
        comm.all_reduce(loss)
        return float(loss)

    for owner in range(comm.size):
        for place in (0, -1):
            slopes = []
            for sign in (1, -1):
                moved = inp.clone()
                if comm.rank == owner and moved.numel():
                    moved.view(-1)[place] += sign * step
                slopes.append(total(moved))
            if comm.rank == owner and inp.numel():
                slope = (slopes[0] - slopes[1]) / (2 * step)
                assert slope == pytest.approx(float(gradient.view(-1)[place]), rel=1e-5, abs=1e-7), (collective, owner)


@pytest.mark.parametrize("tp_input", ["replicated", "partial"])
def test_gradients_between_replicated_tensors(tp_input: str) -> None:
    """Two groups of two ranks. The ranks of a group compute one loss, which counts once."""

    def rank(transport: Any) -> None:
        nodes_of(2)
        comm = commbench.communicator()
        group = comm.rank // 2
        owners = [0, 0, 1, 1] if tp_input == "replicated" else [0, 1, 2, 3]
        leaves = [numbers(owner, 2, 16, dtype=torch.float64) / 50 for owner in range(max(owners) + 1)]
        for leaf in leaves:
            leaf.requires_grad_()
        of_groups = leaves if tp_input == "replicated" else [leaves[0] + leaves[1], leaves[2] + leaves[3]]
        outputs = [torch.stack([x[destination] for x in of_groups]) for destination in range(2)]
        total = loss_of(outputs[0], 0) + loss_of(outputs[1], 1)
        want = torch.autograd.grad(total, leaves)[owners[comm.rank]]
        mine = leaves[owners[comm.rank]].detach().requires_grad_()
        out = comm.autograd.tp_all_to_all(mine, tp=2, tp_input=tp_input)
        close(out, outputs[group])
        loss_of(out, group).backward()
        close(mine.grad, want)

    on_gloo(4, rank)


def test_a_gradient_that_is_no_plain_tensor() -> None:
    """`sum` hands back one number that looks like many; a leaf that two calls use gets both."""

    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        inp = torch.ones(4, requires_grad=True)
        out = comm.autograd.all_to_all(inp) + comm.autograd.all_gather(inp).view(2, 4).sum(0)
        out.sum().backward()
        assert inp.grad is not None and inp.grad.tolist() == [3.0] * 4
        with torch.no_grad():
            assert not comm.autograd.all_to_all(inp).requires_grad
        raises(UsageError, lambda: comm.autograd.all_to_all(torch.ones(4, 2).t()), "not contiguous")

    on_gloo(2, rank)


# Choices on the buffers that they need


def test_buffers_from_elsewhere_get_the_best_choice_for_them() -> None:
    """gloo has plain buffers only, so the transport's record is stretched: what is asked of it counts."""

    def rank(transport: Any) -> None:
        from commbench.transports import TABLE

        TABLE["gloo"] = replace(TABLE["gloo"], buffers=("plain", "registered"))
        taken = profiles.choice(
            "all_to_all", "bruck", buffers="registered", on_plain=profiles.way("all_to_all", "pairwise")
        )
        comm = by(taken, profiles.choice("all_gather", "direct", buffers="registered"))
        check_all_to_all(comm, 4)
        told = comm.explain()
        assert "all_to_all, 32 B: pairwise window=1" in told
        assert (
            "why: bruck on registered buffers was tuned, and these are not from empty(); the profile's choice" in told
        )
        out, inp = comm.empty((2, 4)), comm.empty(8)
        assert (out.shape, inp.dtype, len(comm._calls.owned)) == ((2, 4), torch.float32, 2)
        for salt in range(3):
            inp.copy_(numbers(comm.rank, 8, salt=salt))
            comm.all_to_all(out, inp)
            want = torch.cat([numbers(src, 8, salt=salt).view(2, 4)[comm.rank] for src in range(2)])
            assert torch.equal(out.view(-1), want)
        assert "all_to_all, 32 B, registered buffers: bruck" in comm.explain()
        comm.all_to_all(out[1], inp[:4])  # parts of them are the same memory
        comm.all_to_all(torch.empty(8), inp)  # one of both is not enough
        assert "all_to_all, 16 B, registered buffers: bruck" in comm.explain()
        comm.all_gather(torch.empty(16), inp)
        assert "direct on registered buffers was tuned, and these are not from empty(); the default" in comm.explain()
        assert comm.empty(3, torch.int8, collective="broadcast").dtype is torch.int8
        assert len(comm._calls.owned) == 2
        comm._transport.lacks = lambda buffers, *, one_sided: "no allocator"
        comm.empty(8)
        assert "registered buffers are plain here: no allocator" in comm.explain()
        comm.close()

    on_gloo(2, rank)


def test_one_sided_ways_fall_back_where_no_rank_reaches_another() -> None:
    def rank(transport: Any) -> None:
        symmetric = profiles.choice("all_to_all", "symm_store", buffers="symmetric")
        comm = LoadedProfile(profiles.profile(symmetric)).communicator()
        check_all_to_all(comm, 4)
        assert "the default" in comm.explain()
        comm._chooser._table._curves.clear()  # type: ignore[union-attr]
        assert not comm._chooser.captures("all_to_all")

    on_gloo(2, rank)


def test_prepare_does_all_but_the_call() -> None:
    def rank(transport: Any) -> None:
        nodes_of(2)
        comm = by(profiles.choice("all_to_all", "2d_intra_first"), profiles.choice("all_to_allv", "2d_intra_first"))
        out, inp = torch.full((16,), -1.0), torch.zeros(16)
        comm.prepare("all_to_all", out, inp)
        assert (out == -1).all() and "all_to_all, 64 B: 2d_intra_first" in comm.explain()
        groups = len(dist.distributed_c10d._world.pg_names)
        check_all_to_all(comm, 4)
        matrix = [[1] * 4 for _ in range(4)]
        comm.prepare("all_to_allv", out.view(4, 4), inp.view(4, 4), received=[1] * 4, sent=[1] * 4, matrix=matrix)
        assert (out == -1).all()
        check_all_to_allv(comm, matrix, matrix, 0)
        assert len(dist.distributed_c10d._world.pg_names) == groups

    on_gloo(4, rank)


def test_profiles_are_read_and_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    made = profiles.profile(profiles.choice("all_to_all", "direct"))
    file.save(made, path)
    loaded = commbench.load_profile(str(path))
    assert isinstance(loaded.profile, Profile) and loaded.profile == made and loaded.name == str(path)
    raises(CommbenchError, lambda: commbench.load_profile(tmp_path / "none.json"), "none.json")
    assert profiles.way("all_to_all", "pairwise") == Way(algorithm="pairwise", params={"window": 1})


def test_the_program_in_the_docs_runs_under_torchrun(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/communicator.md").read_text()
    (tmp_path / "exchange.py").write_text(text.split("```python\n")[1].split("```")[0])
    made = profiles.profile(profiles.choice("all_to_all", "pairwise"), profiles.choice("all_to_allv", "pairwise"))
    file.save(made, tmp_path / "p.json")
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "exchange.py", "p.json"],
        cwd=tmp_path, env=environment(REPOSITORY / "kernels"), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "all_to_all, 16 KiB: pairwise window=1" in result.stdout, result.stdout
    assert "all_to_allv, 768 B: pairwise window=1" in result.stdout, result.stdout
    assert "profile: p.json, scope s (gloo, any nodes x any ranks)" in result.stdout
