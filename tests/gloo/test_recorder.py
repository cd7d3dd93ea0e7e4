"""The recorder: what it counts and times, on a group that nobody made, and on two real ranks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import commbench
from commbench.backend import observer, recorder
from commbench.backend.install import install
from commbench.backend.observer import GroupInfo, ObservedCall
from commbench.backend.recorder import CallRecorder
from commbench.record import folder, rank_file
from commbench.record.consolidate import consolidate
from commbench.record.exchanges import exchanges
from commbench.record.trace import TracedCalls
from tests.gloo.test_backend import meet
from tests.support.ranks import forked

WORLD = GroupInfo("0", (0, 1, 2, 3), 2, "cpu:gloo,cuda:nccl", "default_pg")
EP = GroupInfo("1", (0, 2), 1, "cpu:gloo", "mesh_ep")


class Slow:
    """A work that takes a while."""

    def wait(self, *timeout: Any) -> bool:
        time.sleep(0.002)
        return True


def call(group: GroupInfo = WORLD, collective: str = "all_to_all", nbytes: int = 4096, **more: Any) -> ObservedCall:
    values = {"function": "alltoall_base", "dtype": "bfloat16", "sent": None, "received": None, "asynchronous": False}
    return ObservedCall(group=group, collective=collective, nbytes=nbytes, device="cpu", **{**values, **more})


def made(path: Path, *, salt: str = "") -> CallRecorder:
    (path / rank_file.FOLDER).mkdir()
    one = CallRecorder(path, salt, {})
    for group in (WORLD, EP):
        one.group_created(group)
    return one


def send(one: CallRecorder, what: ObservedCall, *, waits: int = 1) -> None:
    work = one.end(one.begin(what), Slow())  # type: ignore[arg-type]
    for _ in range(waits):
        assert work.wait()


def lines(one: CallRecorder, path: Path) -> dict[str, TracedCalls]:
    one.write()
    (record,) = rank_file.read_all(path)
    return {line.collective: line for line in record.calls}


def test_calls_are_counted_and_timed(tmp_path: Path) -> None:
    one = made(tmp_path)
    for _ in range(3):
        send(one, call(), waits=2)  # the second finds it done, and costs the program nothing
        send(one, call(EP, "all_to_allv", 96, sent=(32, 64), received=(16, 8), asynchronous=True), waits=0)
    found = lines(one, tmp_path)
    even, uneven = found["all_to_all"], found["all_to_allv"]
    assert (even.rank, even.count, even.nbytes, even.dtype, even.async_op) == (2, 3, 4096, "bf16", False)
    assert even.wait_us is not None and 3 * 2000 <= even.wait_us < 100 * 2000 and even.host_us > 0
    assert uneven.wait_us is None and (uneven.sent, uneven.received) == ([32, 64], [16, 8])
    assert uneven.sequences == [0, 1, 2] and uneven.async_op
    assert even.site.endswith(f"test_recorder.py:{send.__code__.co_firstlineno + 1}")
    (record,) = rank_file.read_all(tmp_path)
    assert (record.ranks, record.transport, record.group_names) == (4, "gloo", ["", "mesh_ep"])


def test_calls_told_by_the_same_object_count_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MOST_SEEN", 3)  # so that they are forgotten in between
    found = []
    for again in (False, True):
        (tmp_path / str(again)).mkdir()
        one = made(tmp_path / str(again))
        told = [call(nbytes=size, asynchronous=later) for size in (64, 128) for later in (False, True)]
        for _ in range(3):
            for what in told:
                send(one, what if again else what._replace())
                one.end(one.begin(what if again else what._replace()), None)  # from another line
        one.write()
        (record,) = rank_file.read_all(tmp_path / str(again))
        found.append(sorted((line.site, line.nbytes, line.async_op, line.count) for line in record.calls))
    assert found[0] == found[1] and len(found[0]) == 8 and {line[3] for line in found[0]} == {3}


def test_a_wait_that_fails_fails_in_the_program(tmp_path: Path) -> None:
    one, error = made(tmp_path), RuntimeError("Connection closed by peer")

    class Failing:
        def wait(self, *timeout: Any) -> bool:
            raise error

    work = one.end(one.begin(call()), Failing())  # type: ignore[arg-type]
    assert work is not None
    with pytest.raises(RuntimeError) as raised:
        work.wait()
    assert raised.value is error and lines(one, tmp_path)["all_to_all"].wait_us is None


def test_the_first_optimizer_that_steps_is_the_clock(tmp_path: Path) -> None:
    one = made(tmp_path)
    first, second = SimpleNamespace(), SimpleNamespace()

    class Optimizer:
        pass

    first, second = Optimizer(), Optimizer()
    send(one, call())
    for _ in range(4):
        one.optimizer_stepped(first)
        one.optimizer_stepped(second)
        send(one, call())
    found = lines(one, tmp_path)["all_to_all"]
    (record,) = rank_file.read_all(tmp_path)
    assert [step for step, _ in record.steps] == [0, 1, 2, 3]
    assert (found.count, found.setup_count) == (5, 1)
    one.step_said()  # from now on the program says it
    one.optimizer_stepped(first)
    lines(one, tmp_path)
    (record,) = rank_file.read_all(tmp_path)
    assert len(record.steps) == 5


def test_long_trainings_keep_some_steps_and_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MOST_STEPS", 16)
    one = made(tmp_path)
    for _ in range(1000):
        one.step_said()
    lines(one, tmp_path)
    (record,) = rank_file.read_all(tmp_path)
    assert len(record.steps) <= 16 and record.steps[-1][0] == 999
    assert consolidate([record]).step_count(2) == 1000


def test_an_anonymous_recording_has_no_host_and_no_folder(tmp_path: Path) -> None:
    one = made(tmp_path, salt="salt")
    send(one, call())
    assert lines(one, tmp_path)["all_to_all"].site.startswith("test_recorder.py:")
    text = (tmp_path / "ranks/rank-2.json").read_text()
    assert os.uname().nodename not in text and str(Path.cwd()) not in text


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    one = made(tmp_path)
    send(one, call())
    one._pid += 1
    one.write()
    assert rank_file.read_all(tmp_path) == []


def test_a_step_that_nobody_records_is_nothing() -> None:
    commbench.step()


class Exchange(torch.autograd.Function):
    """An exchange with its gradient, as the layers of a model have it."""

    @staticmethod
    def forward(ctx: Any, inp: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(inp)
        dist.all_to_all_single(out, inp)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(gradient)
        dist.all_to_all_single(out, gradient.contiguous())
        return out


def train(steps: int) -> list[float]:
    """A tiny training whose calls come from Python, from the backward pass and from C++."""
    torch.manual_seed(0)
    rank, losses = dist.get_rank(), []
    model = DistributedDataParallel(torch.nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        loss = Exchange.apply(model(torch.ones(4, 8) * (rank + 1))).square().mean()
        sent = [1 + rank, 3 - rank]
        received = [1, 2] if rank == 0 else [3, 2]
        work = dist.all_to_all_single(torch.empty(sum(received), 2), torch.ones(4, 2), received, sent, async_op=True)
        loss.backward()
        work.wait()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_two_ranks_that_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo  # as DistributedDataParallel does: once, and not in each rank

    recording = folder.begin(tmp_path / "trace", command=["train.py"])
    monkeypatch.setenv("COMMBENCH_RECORD", str(tmp_path / "trace"))

    def rank(me: int, *, recorded: bool) -> None:
        torch.set_num_threads(1)
        if recorded:
            install(lambda: setattr(observer, "current", recorder.recorder()))
        store = tmp_path / f"store-{recorded}"
        store.mkdir(exist_ok=True)
        meet(me, 2, store)
        losses = train(5)
        (tmp_path / f"losses-{recorded}-{me}").write_text(json.dumps(losses))
        if recorded:
            recorder.recorder().write()
        dist.destroy_process_group()

    assert forked(2, lambda me: rank(me, recorded=False)) == [0, 0]
    assert forked(2, lambda me: rank(me, recorded=True)) == [0, 0]
    for me in range(2):
        plain, recorded = ((tmp_path / f"losses-{how}-{me}").read_text() for how in (False, True))
        assert plain == recorded
    trace = consolidate(recording.records(), **recording.about)
    assert trace.ranks == 2 and trace.step_count(0) == trace.step_count(1) == 5 and trace.transport == "gloo"
    found = {(one.collective, one.async_op): one for one in exchanges(trace) if one.collective != "all_to_all"}
    even = [one for one in exchanges(trace) if one.collective == "all_to_all"]
    assert [(one.calls, one.nbytes, one.ranks) for one in even] == [(1, 128, 2)] * 2  # forward, and backward
    assert len({one.site for one in even}) == 2 and all("test_recorder.py:" in one.site for one in even)
    assert all(one.time_us and one.exposed_us for one in even)
    uneven = found["all_to_allv", True]
    assert uneven.calls == 1 and uneven.skew == pytest.approx(5 / 4) and uneven.exposed_us
    assert found["all_reduce", True].calls == 1 and found["all_reduce", True].nbytes == 4 * 72


def test_a_program_goes_on_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    one = made(tmp_path)
    monkeypatch.setattr(observer, "current", one)
    monkeypatch.setattr(recorder, "_recorder", one)
    send(one, call())
    (tmp_path / rank_file.FOLDER).rmdir()
    commbench.step()
    commbench.step()
    assert observer.current is None and capfd.readouterr().err.count("recording ends here, the program goes on") == 1


def test_a_call_without_a_work_is_timed_too(tmp_path: Path) -> None:
    """As a synchronous one over NCCL, which the program's own stream makes."""
    one = made(tmp_path)
    assert one.end(one.begin(call()), None) is None
    found = lines(one, tmp_path)["all_to_all"]
    assert found.count == 1 and found.host_us > 0 and found.wait_us is None


class Event:
    """An event of a GPU whose clock goes 1 ms from one to the next."""

    made = 0

    def __init__(self) -> None:
        Event.made += 1
        self.at_ms = float(Event.made)

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return other.at_ms - self.at_ms


class Timed(Slow):
    """A work of NCCL, where it times what it does."""

    def _get_duration(self) -> float:
        return 7.0


def test_on_a_gpu_some_calls_stand_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    one = made(tmp_path)
    for _ in range(40):
        assert one.end(one.begin(call()._replace(device="cuda")), None) is None
        send_on_gpu(one, Slow(), "broadcast")
        send_on_gpu(one, Timed(), "all_gather")
        one.step_said()
    found = lines(one, tmp_path)
    sync, unknown, timed = (found[name] for name in ("all_to_all", "broadcast", "all_gather"))
    # The stream makes a synchronous call itself: what it takes is what the program waits, from one event to the next.
    assert sync.device_us == sync.wait_us == 40 * 1000 and sync.setup_wait_us == 1000
    # Of an asynchronous one the wait is seen, between the last two of three events, and the rest if NCCL says it.
    assert (unknown.device_us, unknown.wait_us) == (None, 40 * 1000)
    assert (timed.device_us, timed.wait_us) == (40 * 7000, 40 * 1000)
    assert Event.made < 40 and rank_file.read_all(tmp_path)[0].transport == "nccl"


def send_on_gpu(one: CallRecorder, inner: Any, collective: str) -> None:
    token = one.begin(call(collective=collective, asynchronous=True)._replace(device="cuda"))
    work = one.end(token, inner)
    assert work is not None and work.wait()
