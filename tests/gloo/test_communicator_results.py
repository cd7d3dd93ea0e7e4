"""Communicators on forked ranks over gloo: right results by every way, in flight, on groups, in the docs' program."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
import torch.distributed as dist

import commbench
from commbench import algorithms, payloads
from commbench.communicators.communicator import Communicator
from commbench.errors import UsageError
from commbench.payloads import tensors
from commbench.profile import file
from moe_ref.schedules.overlap import start
from tests.conftest import PATIENCE_S, REPOSITORY, environment
from tests.gloo.calls import DTYPES, by, check_all_to_all, check_all_to_allv, nodes_of, numbers, raises
from tests.support import profiles
from tests.support.ranks import on_gloo


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
        same = numbers(me, n, 3, salt=4)
        for call in (comm.all_to_all, lambda *both: comm.all_to_allv(*both, [1] * n, [1] * n)):
            if n == 1:
                call(same, same)
                assert torch.equal(same, numbers(me, n, 3, salt=4))
            else:
                raises(UsageError, functools.partial(call, same, same), "overlap")
        if n == 1:
            arrived = start(comm, "all_to_all", same).wait()
            assert arrived.data_ptr() == same.data_ptr(), "one rank copies nothing to itself"
            lossy = start(comm.with_payload("int8"), "all_to_all", same).wait()
            assert lossy.data_ptr() != same.data_ptr() and not torch.equal(lossy, same)
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


def test_counts_may_be_numpys() -> None:
    """Which wrap around where they are small integers, and counts are multiplied by the bytes of a row."""

    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        matrix = np.array([[1, 2], [2, 1]], dtype=np.int8)
        me = comm.rank
        for known in (None, matrix):
            out, inp = torch.zeros(3, 64), numbers(me, 3, 64, salt=1)
            comm.all_to_allv(out, inp, matrix[:, me], matrix[me], matrix=known)
            parts = [numbers(src, 3, 64, salt=1).split(matrix[src].tolist())[me] for src in range(2)]
            assert torch.equal(out, torch.cat(parts))
        assert comm.exchange_counts(matrix[me]) == matrix.tolist()

    on_gloo(2, rank)


def test_rows_travel_as_a_payload() -> None:
    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        me, matrix = comm.rank, [[1, 2], [0, 3]]
        received, sent = [line[me] for line in matrix], matrix[me]
        int8 = payloads.TABLE["int8"]
        parts = [numbers(src, sum(matrix[src]), 200, salt=1).split(matrix[src])[me] for src in range(2)]
        wanted = tensors.dequantise(tensors.quantise(torch.cat(parts), int8), 200, torch.float32, int8)
        lossy = comm.with_payload("int8")
        for asynchronous in (False, True):
            out, inp = torch.zeros(len(wanted), 200), numbers(me, sum(sent), 200, salt=1)
            pending = lossy.all_to_allv(out, inp, received, sent, matrix=matrix, async_op=asynchronous)
            if pending is not None:
                pending.wait()
            assert torch.equal(out, wanted)
        comm.all_to_allv(out, inp, received, sent, matrix=matrix)
        assert torch.equal(out, torch.cat(parts)), "nobody asked for a payload"

    on_gloo(2, rank)


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
            assert ("not a whole number of units of 16 B" in told) == (name == "2d_pipelined")
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
            "no algorithm", "not a whole number",
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


def test_groups_of_ranks_have_communicators_of_their_own() -> None:
    def rank(transport: Any) -> None:
        me = dist.get_rank()
        groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        comm = commbench.communicator(groups[me % 2])
        assert (comm.rank, comm.size) == (me // 2, 2)
        check_all_to_all(comm, 4)
        raises(UsageError, lambda: commbench.communicator(groups[(me + 1) % 2]), "not a rank of the group")
        # Communicators of all ranks and of some, in turn.
        world = commbench.communicator()
        for _ in range(3):
            check_all_to_all(world, 4)
            check_all_to_all(comm, 8)
        comm.close()
        with world:
            check_all_to_all(world, 2)

    on_gloo(4, rank)


def test_the_program_in_the_docs_runs_under_torchrun(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/guide/communicator.md").read_text()
    (tmp_path / "exchange.py").write_text(text.split("```python\n")[1].split("```")[0])
    made = profiles.profile(profiles.choice("all_to_all", "pairwise"), profiles.choice("all_to_allv", "pairwise"))
    file.save(made, tmp_path / "p.json")
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "exchange.py", "p.json"],
        cwd=tmp_path, env=environment(REPOSITORY / "kernels"), capture_output=True, text=True, check=False,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "all_to_all, 16 KiB: pairwise window=1" in result.stdout, result.stdout
    assert "all_to_allv, 768 B: pairwise window=1" in result.stdout, result.stdout
    assert "profile: p.json, scope s (gloo, any nodes x any ranks)" in result.stdout
