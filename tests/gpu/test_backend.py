"""Wrapped groups over NCCL on one GPU: torch's own calls pass through, and a profile's are made on its streams."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commbench import transports
from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)
if reason := transports.missing("nccl"):
    pytest.skip(reason, allow_module_level=True)

import torch  # once, and not by each that is forked
import torch.distributed as dist

from commbench.profile import Profile, file
from tests.support import profiles
from tests.support.ranks import forked


def direct() -> Profile:
    return profiles.profile(*(profiles.choice(name, "direct") for name in ("all_to_all", "all_gather", "broadcast")),
                            transport="nccl")  # fmt: skip


def pairwise() -> Profile:
    return profiles.profile(profiles.choice("all_to_all", "pairwise"), transport="nccl")


def on_gpu(folder: Path, profile: Profile, body: Callable[[Any], None], backend: str = "nccl") -> None:
    """`body(group)` in a process of its own, on one rank whose groups are wrapped."""
    file.save(profile, folder / "p.json")

    def rank(me: int) -> None:
        import commbench.backend  # noqa: F401 - makes the name known
        from commbench.backend.group import WrappedGroup
        from commbench.backend.install import install
        from commbench.backend.source import ProfileSource

        torch.cuda.set_device(0)
        source = ProfileSource(folder / "p.json")
        os.environ["COMMBENCH_PROFILE"] = str(folder / "p.json")
        if backend == "nccl":
            install(lambda: source)
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        assert isinstance(dist.group.WORLD, WrappedGroup) and dist.get_backend() == backend
        body(dist.group.WORLD)
        if dist.is_initialized():
            torch.cuda.synchronize()
            dist.destroy_process_group()

    assert forked(1, rank) == [0]


@pytest.mark.parametrize("profile", [direct, pairwise])
@pytest.mark.parametrize("backend", ["nccl", "commbench"])
def test_calls_and_graphs(tmp_path: Path, profile: Callable[[], Profile], backend: str) -> None:
    def body(group: Any) -> None:
        import commbench.backend

        inp, out = torch.arange(1024.0, device="cuda"), torch.zeros(1024, device="cuda")
        whole = torch.zeros_like(out)
        for asynchronous in (False, True):
            for salt in range(3):
                inp.add_(salt)
                for work in (
                    dist.all_to_all_single(out, inp, async_op=asynchronous),
                    dist.all_gather_into_tensor(whole, inp, async_op=asynchronous),
                    dist.broadcast(whole, 0, async_op=asynchronous),
                    dist.all_reduce(whole, async_op=asynchronous),
                ):
                    if work is not None:
                        work.wait()
                assert torch.equal(out, inp) and torch.equal(whole, inp)
        dist.all_to_all_single(out, inp, [1024], [1024])
        with dist._coalescing_manager(group, device=torch.device("cuda"), async_ops=True) as manager:  # type: ignore
            dist.all_reduce(out)
            dist.all_reduce(whole)
        manager.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            dist.all_to_all_single(out, inp)
            dist.all_gather_into_tensor(whole, out)
        for salt in range(3):
            inp.add_(salt)
            graph.replay()
            assert torch.equal(out, inp) and torch.equal(whole, inp), salt
        graph.reset()
        del graph
        told = commbench.backend.explain()
        assert ("pairwise" in told) == (profile is pairwise), told

    on_gpu(tmp_path, profile(), body, backend)


def test_functional_and_compiled(tmp_path: Path) -> None:
    def body(group: Any) -> None:
        import torch.distributed._functional_collectives as functional

        def exchange(value: Any) -> Any:
            return functional.all_to_all_single(value * 2, None, None, group) + functional.all_reduce(
                value, "sum", group
            )

        x = torch.arange(64.0, device="cuda", requires_grad=True)
        with torch.no_grad():
            assert torch.equal(exchange(x), 3 * x)
            assert torch.equal(torch.compile(exchange, backend="aot_eager", fullgraph=True)(x), 3 * x)
        functional.all_to_all_single_autograd(x, None, None, group).square().sum().backward()
        assert torch.equal(x.grad, 2 * x)

    on_gpu(tmp_path, pairwise(), body)


def test_what_nccl_has_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own object, timeouts, sequence numbers, the flight recorder; then `abort`."""
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "100")

    def body(group: Any) -> None:
        import datetime
        import json

        x = torch.ones(8, device="cuda")
        dist.all_reduce(x)
        nccl = group._get_backend(torch.device("cuda"))
        assert isinstance(nccl, dist.ProcessGroupNCCL) and nccl.comm_split_count() == 0
        group.set_timeout(datetime.timedelta(seconds=33))
        assert nccl.options._timeout == datetime.timedelta(seconds=33)
        dist.barrier()
        torch.cuda.synchronize()
        assert group._get_sequence_number_for_group() >= 1
        from torch.distributed import _symmetric_memory

        symmetric = _symmetric_memory.empty(64, dtype=torch.float32, device="cuda")
        assert _symmetric_memory.rendezvous(symmetric, group.group_name).world_size == 1
        trace = json.loads(torch._C._distributed_c10d._dump_nccl_trace_json())
        names = {entry["profiling_name"] for entry in trace["entries"]}
        assert "nccl:all_reduce" in names, names
        other = dist.new_group([0])
        dist.all_reduce(x, group=other)
        dist.destroy_process_group(other)
        dist.distributed_c10d._abort_process_group()
        assert not dist.is_initialized()

    on_gpu(tmp_path, direct(), body)


def test_a_watchdog_sees_what_hangs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A call that does not end within the group's timeout is told by NCCL's watchdog, as without the wrapper.

    Whether the process is aborted before the GPU is free again is a matter of time.
    """
    file.save(direct(), tmp_path / "p.json")

    def rank(me: int) -> None:
        import datetime

        from commbench.backend.install import install
        from commbench.backend.source import ProfileSource

        os.environ |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
        torch.cuda.set_device(0)
        source = ProfileSource(tmp_path / "p.json")
        install(lambda: source)
        timeout = datetime.timedelta(seconds=3)
        dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, timeout=timeout)
        x = torch.ones(8, device="cuda")
        dist.all_reduce(x)
        torch.cuda.synchronize()
        torch.cuda._sleep(16_000_000_000)  # the call behind it does not end in time
        dist.all_reduce(x, async_op=True)
        torch.cuda.synchronize()

    assert forked(1, rank) in ([0], [-6])
    assert "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=2, OpType=ALLREDUCE" in capfd.readouterr().err
