"""Communicators on forked ranks over gloo: what is wrong is said on all ranks, before anything is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import commbench
from commbench.communicators import create
from commbench.communicators.loaded import LoadedProfile
from commbench.errors import EnvironmentProblem, UsageError
from commbench.profile import file
from commbench.profile.scope import OutOfScope
from tests.gloo.calls import by, check_all_to_all, nodes_of, raises
from tests.support import profiles
from tests.support.ranks import on_gloo


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
        create.host_id = (lambda: 1 / 0) if me == 1 else create.host_id  # type: ignore[assignment,return-value]
        raises(EnvironmentProblem, lambda: commbench.communicator(), "rank 1: ZeroDivisionError", "that rank's log")
        with pytest.raises(EnvironmentProblem) as caught:
            commbench.communicator()
        assert isinstance(caught.value.__cause__, ZeroDivisionError) == (me == 1)  # so that the log has it

    on_gloo(2, rank)


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
        raises(UsageError, lambda: v(a, b, [2, 2], [2, 2], matrix=[[2, 2]]), "matrix has 1 rows", "2 rows")
        raises(UsageError, lambda: v(a, b, [2, 2], [2, 2], matrix=[[2, 2], [2]]), "row 1 of matrix is [2]", "2 counts")
        raises(UsageError, lambda: v(a, b, [2, 2], [2, 2], matrix=[[2, 2], [2, -1]]), "row 1 of matrix is [2, -1]")
        raises(UsageError, lambda: comm.exchange_counts([4]), "exchange_counts: sent is [4]", "2 counts")
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


def test_ranks_in_different_numbers_of_groups_are_told_before_torch_hangs() -> None:
    def rank(transport: Any) -> None:
        nodes_of(2)
        dist.new_group([0, 1])
        comm = by(profiles.choice("all_to_all", "2d_intra_first"))
        raises(EnvironmentProblem, lambda: check_all_to_all(comm, 4), "3, 3, 2, 2 process groups")

    on_gloo(4, rank)


def test_a_mesh_of_one_dimension_is_a_group() -> None:
    def rank(transport: Any) -> None:
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "ep"))
        with commbench.communicator(mesh["ep"]) as comm:
            assert comm.size == 2
        with pytest.raises(UsageError, match=r"\('dp', 'ep'\) has no one group"):
            commbench.communicator(mesh)

    on_gloo(2, rank)
