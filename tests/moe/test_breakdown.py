"""The step breakdown: whose time is whose, of made-up traces of a CPU and a GPU, and of real ones."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from commbench.plots import training
from commbench.train.results import BREAKDOWN
from moe_ref.capacity import Capacity
from moe_ref.distributed import DistributedMoE
from moe_ref.experts import FFN
from moe_ref.gate import Gate
from moe_ref.gate_config import GateConfig
from moe_ref.sharding import shard
from moe_ref.training import breakdown
from moe_ref.training.breakdown import Event, Recorder, events_of, parts
from moe_ref.training.instrumented_comm import CommMonitor, InstrumentedComm
from moe_ref.training.timers import Timers
from moe_ref.training.trainer import Trainer
from tests.moe.fake import Alone
from tests.moe.test_training import TINY

NODE = "autograd::engine::evaluate_function: "


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of(events: list[Event], device: str = "cpu") -> dict[str, float]:
    """Microseconds by part of the only step, those that have any."""
    (line,) = parts(events, device)
    assert line["device"] == device and set(line["parts"]) == set(breakdown.PARTS)
    if device == "cpu":
        assert sum(line["parts"].values()) == pytest.approx(line["step_us"])
    return {name: took for name, took in line["parts"].items() if took}


def us(name: str, start: float, end: float, thread: int = 1, **more: Any) -> Event:
    return Event(name, thread, round(1000 * start), round(1000 * end), **more)


def test_the_innermost_range_has_the_time() -> None:
    found = of([
        us("train::step", 0, 100),
        us("lm::attention", 10, 30), us("comm::all_reduce", 20, 25),
        us("lm::moe", 30, 60), us("moe::dispatch", 32, 42), us("comm::all_to_all", 35, 40), us("moe::experts", 42, 50),
        us("aten::mm", 43, 49), us("moe::combine", 50, 58),
        us("train::gradients", 60, 70), us("comm::all_reduce", 61, 69),
        us("train::optimizer", 70, 90),
    ])  # fmt: skip
    assert found == {
        "attention": 15, "communication": 5, "dispatch": 5, "a2a": 5, "experts": 8, "combine": 8, "gradients": 10,
        "optimiser": 20, "other": 10 + 2 + 2 + 10,
    }  # fmt: skip


def test_a_range_ends_with_the_one_around_it() -> None:
    found = of([us("train::step", 0, 20), us("moe::gate", 0, 10), us("comm::all_reduce", 5, 12), us("lm::ffn", 12, 20)])
    assert found == {"gate": 5, "communication": 5, "other": 2, "ffn": 8}


def test_backward_belongs_to_the_part_of_its_operation() -> None:
    found = of([
        us("train::step", 0, 100),
        us("moe::gate", 0, 10), us("aten::linear", 1, 9, sequence=7), us("aten::addmm", 2, 8, sequence=7),
        us("moe::experts", 10, 20), us("aten::mul", 11, 12, sequence=8),
        us("train::backward", 30, 90),
        us(NODE + "MulBackward0", 31, 41, sequence=8, fwd_thread=1),
        us("MulBackward0", 32, 40, sequence=8, fwd_thread=1),
        us(NODE + "torch::autograd::AccumulateGrad", 41, 45),
        us(NODE + "_WaitBackward", 50, 60, sequence=7, fwd_thread=1),  # says 7, which the gate has made
        us("comm::all_to_all", 52, 57),
        us(NODE + "UnknownBackward0", 60, 65, sequence=99, fwd_thread=1),
        us(NODE + "MulBackward0", 65, 66, sequence=8, fwd_thread=3),  # the same number of another thread
    ])  # fmt: skip
    assert found == {"gate": 10 + 5, "experts": 10 + 10 + 4, "a2a": 5, "other": 100 - 15 - 24 - 5}


def test_the_last_operation_that_shows_a_number_has_got_it() -> None:
    events = [
        us("train::step", 0, 50), us("moe::gate", 0, 5), us("aten::argmax", 1, 2, sequence=4),  # without a gradient
        us("moe::experts", 5, 10), us("aten::mul", 6, 7, sequence=4),
        us(NODE + "MulBackward0", 20, 30, sequence=4, fwd_thread=1),
    ]  # fmt: skip
    assert of(events) == {"gate": 5, "experts": 15, "other": 30}


def test_blocks_that_are_computed_again_have_their_own_ranges() -> None:
    found = of([
        us("train::step", 0, 50), us("moe::combine", 0, 10), us("_Combine", 1, 9, sequence=3),
        us("train::backward", 10, 50), us(NODE + "_CombineBackward", 10, 45, sequence=3, fwd_thread=1),
        us("train::redone", 12, 40), us("lm::attention", 15, 35),
    ])  # fmt: skip
    assert found == {"combine": 10 + 2 + 5, "attention": 20, "other": 8 + 5}


def test_a_step_ends_where_it_is_read_and_each_has_its_own() -> None:
    steps = [us("train::step", start, start + 50) for start in (0, 100, 200)]
    events = [
        *steps,
        us("train::read", 30, 40),
        us("lm::ffn", 110, 120),
        us("lm::ffn", 60, 90),
        us("train::read", 130, 145),
    ]
    first, second, third = parts([*events, us("train::read", 260, 270)], "cpu")
    assert first["step_us"] == 40 and first["parts"]["other"] == 40
    assert second["step_us"] == 45 and second["parts"]["ffn"] == 10 and third["step_us"] == 50
    assert parts([us("lm::ffn", 0, 1)], "cpu") == []


def test_on_a_gpu_kernels_count_by_their_launch() -> None:
    def kernels(*spans: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return tuple((1000 * start, 1000 * end) for start, end in spans)

    found = of([
        us("train::step", 0, 200), us("train::read", 20, 100),
        us("moe::dispatch", 1, 4), us("aten::index", 2, 3, sequence=5),
        us("cudaLaunchKernel", 2.5, 2.6, kernels=kernels((20, 30))),
        us("comm::all_to_all", 4, 6), us("cudaLaunchKernelExC", 5, 5.5, kernels=kernels((30, 60))),
        us("moe::experts", 6, 8), us("cudaLaunchKernel", 7, 7.1, kernels=kernels((40, 55))),  # beside the exchange
        us("cudaMemcpyAsync", 7.5, 7.6, kernels=kernels((55, 58), (56, 59))),  # two engines: 4 us, not 6
        us(NODE + "IndexBackward0", 9, 12, thread=2, sequence=5, fwd_thread=1),
        us("cudaLaunchKernel", 10, 11, thread=2, kernels=kernels((70, 80))),
        us("train::optimizer", 150, 160),
        us("cudaLaunchKernel", 155, 156, kernels=kernels((157, 160))),  # after the step
    ], "cuda")  # fmt: skip
    assert found == {"dispatch": 10 + 10, "a2a": 30, "experts": 15 + 4, "idle": 100 - 40 - 10}


@dataclass(frozen=True)
class Raw:
    """A record of the profiler, as far as it is asked."""

    named: str
    start: int
    took: int
    device: str = "CPU"
    thread: int = 1
    number: int = 0
    link: int = 0
    sequence: int = -1
    forward: int = 0
    range_: bool = False

    def name(self) -> str:
        return self.named

    def start_ns(self) -> int:
        return self.start

    def duration_ns(self) -> int:
        return self.took

    def end_ns(self) -> int:
        return self.start + self.took

    def start_thread_id(self) -> int:
        return self.thread

    def correlation_id(self) -> int:
        return self.number

    def linked_correlation_id(self) -> int:
        return self.link

    def sequence_nr(self) -> int:
        return self.sequence

    def fwd_thread_id(self) -> int:
        return self.forward

    def is_user_annotation(self) -> bool:
        return self.range_

    def device_type(self) -> Any:
        return getattr(torch.autograd.DeviceType, self.device)  # type: ignore[attr-defined]


def test_kernels_are_tied_to_what_launched_them() -> None:
    """Numbers of operations and of launches are counted apart, and launches know the system's thread, 4711."""
    found = events_of([
        Raw("train::step", 0, 100_000, number=1, range_=True),
        Raw("comm::all_to_all", 1_000, 5_000, number=2, range_=True),
        Raw("comm::all_to_all", 20_000, 9_000, "CUDA", number=2, range_=True),  # the same on the GPU's time line
        Raw("lm::ffn", 40_000, 9_000, "CUDA", number=2),  # a version that does not say what it is
        Raw("lm::ffn", 6_000, 2_000, number=3, range_=True),
        Raw("aten::mm", 6_500, 1_000, number=4, sequence=12),
        Raw("cudaLaunchKernel", 6_600, 100, thread=4711, number=4, link=4),
        Raw("gemm", 30_000, 8_000, "CUDA", number=4, link=4),
        Raw("cuLaunchKernel", 2_000, 100, thread=4711, number=5),  # by our own hands, under no operation
        Raw("put", 20_000, 7_000, "CUDA", number=5),
        Raw("Memcpy", 50_000, 1_000, "CUDA", number=6, link=4),  # whose launch is not in the trace
        Raw("Memset", 60_000, 2_000, "CUDA", number=7),
        Raw("cudaMemcpyAsync", 3_000, 100, number=9),  # which knows the profiler's number of its thread
        Raw("Memcpy", 80_000, 1_000, "CUDA", number=9),
        Raw("cudaDeviceSynchronize", 70_000, 100, thread=4711, number=8),
    ])  # fmt: skip
    assert of(found, "cuda") == {"ffn": 9, "a2a": 7 + 1, "other": 2, "idle": 100 - 19}


def test_every_part_can_be_drawn() -> None:
    assert set(training.PARTS) == set(breakdown.PARTS)


def profiled(what: Callable[[], object]) -> list[Event]:
    with profile(activities=[ProfilerActivity.CPU]) as running:
        what()
    assert running.profiler is not None
    results: Any = running.profiler.kineto_results
    return events_of(results.events())


def nodes(events: list[Event]) -> dict[str, set[str]]:
    """By name of backward, the parts that they were given."""
    ordered = sorted(events, key=lambda event: (event.start, -event.end))
    lines = breakdown._lines(ordered)
    found = defaultdict(set)
    for event in ordered:
        if event.name.startswith(NODE):
            found[event.name.removeprefix(NODE)].add(lines[event.thread].at(event.start))
    return dict(found)


def layer(schedule: str, dispatch: str = "sparse") -> tuple[DistributedMoE, CommMonitor]:
    monitor = CommMonitor(Timers(torch.device("cpu")))
    comms: dict[str, Any] = {name: InstrumentedComm(Alone(), monitor) for name in ("comm", "tp", "ep")}  # type: ignore[arg-type]
    groups = schedule in ("tensor_parallel", "parm_s1", "parm_s2")
    experts = FFN(4, 8, 12)
    if groups:
        shard(experts, 0, 1)
    gate = Gate(8, GateConfig(experts=4, top_k=2, capacity=Capacity("tutel", 2.0)))
    given = comms if groups else {"comm": comms["comm"]}
    return DistributedMoE(gate, experts, schedule=schedule, permute=dispatch, equal_tokens=True, **given), monitor


SCHEDULES = ("sequential", "pipelined", "expert_groups", "tensor_parallel", "parm_s1", "parm_s2")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_have_ranges_in_both_passes(schedule: str) -> None:
    made, monitor = layer(schedule)
    x = torch.randn(16, 8, requires_grad=True)

    def both() -> None:
        y, routing = made(x)
        (y.sum() + sum(routing.losses.values())).backward()

    events = profiled(both)
    found = nodes(events)
    assert found["SparseDispatchBackward"] == {"dispatch"} and found["SparseCombineBackward"] == {"combine"}
    assert found["BmmBackward0" if "BmmBackward0" in found else "BaddbmmBackward0"] == {"experts"}
    assert found["TopkBackward0" if "TopkBackward0" in found else "SoftmaxBackward0"] == {"gate"}
    if schedule in ("tensor_parallel", "parm_s1", "parm_s2"):
        assert found["_TPDispatchBackward"] == {"dispatch"} and found["_TPCombineBackward"] == {"combine"}
    else:
        assert found["_StartBackward"] == found["_WaitBackward"] == {"dispatch", "combine"}
    ordered = sorted(events, key=lambda event: (event.start, -event.end))
    backward = next(event.start for event in ordered if event.name.startswith(NODE))
    called = [event.name for event in ordered if event.name.startswith("comm::")]
    # Waiting for a call in flight is a range too; what calls there were, `monitor` has counted.
    asked = sum(monitor.calls.values())
    assert asked and asked <= len(called) <= 2 * asked
    assert {event.name for event in ordered if event.name.startswith("comm::") and event.start > backward} & {
        "comm::all_to_all", "comm::tp_all_to_all"
    }  # fmt: skip


@pytest.mark.parametrize("recompute", ["none", "redo"])
def test_a_step_of_the_trainer_is_told_apart(recompute: str, tmp_path: Path) -> None:
    trainer = Trainer(replace(TINY, recompute=recompute, steps=1))
    events = profiled(lambda: trainer.step())
    found = nodes(events)
    attention = next(name for name in found if name.startswith("ScaledDotProduct"))
    assert found[attention] == {"attention"}
    assert found["EmbeddingBackward0"] == {"other"} and "optimiser" not in set().union(*found.values())
    ordered = sorted(events, key=lambda event: (event.start, -event.end))
    lines = breakdown._lines(ordered)
    passes = [event for event in ordered if event.name == "aten::scaled_dot_product_attention"]
    assert len(passes) == TINY.layers * 2 * (2 if recompute == "redo" else 1), "two parts, and each again"
    assert {lines[event.thread].at(event.start) for event in passes} == {"attention"}
    again = [event for event in ordered if event.name == "train::redone"]
    assert len(again) == (TINY.layers * 2 if recompute == "redo" else 0)
    assert {lines[event.thread].at(event.start) for event in again} <= {"other"}


def steps(trainer: Trainer, folder: Path, until: int, stop: int | None = None) -> tuple[list[bool], list[str], int]:
    """Whether each step was profiled, what was told, and how often ranks met."""
    told: list[str] = []
    met: list[int] = []
    recorder = Recorder(trainer, folder, barrier=lambda: met.append(1), note=told.append)
    marked = []
    while trainer.done < until:
        metrics, stopped = recorder.step(stop=trainer.done + 1 == stop)
        marked.append(metrics.profiled)
        assert json.loads(metrics.to_json())["profiled"] is metrics.profiled
        if stopped:
            break
    return marked, told, len(met)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / BREAKDOWN
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_steps_four_and_five_are_profiled(tmp_path: Path) -> None:
    trainer = Trainer(TINY)
    marked, told, met = steps(trainer, tmp_path, 6)
    assert marked == [False, False, True, True, True, False] and told == [] and met == 3
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [4, 5]
    for line in lines:
        assert line["rank"] == 0 and line["device"] == "cpu" and line["parts"]["idle"] == 0
        assert sum(line["parts"].values()) == pytest.approx(line["step_us"])
        assert all(line["parts"][part] > 0 for part in ("attention", "ffn", "gate", "dispatch", "experts", "combine"))
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]


def test_short_runs_and_none_have_no_breakdown(tmp_path: Path) -> None:
    for config in (replace(TINY, steps=4), replace(TINY, breakdown_steps=0)):
        marked, _, met = steps(Trainer(config), tmp_path, config.steps)
        assert not any(marked) and not met and not lines_of(tmp_path)


def test_a_stop_in_between_leaves_what_there_is(tmp_path: Path) -> None:
    marked, told, _ = steps(Trainer(TINY), tmp_path, 6, stop=4)
    assert marked == [False, False, True, True] and told == []
    assert [line["step"] for line in lines_of(tmp_path)] == [4]
    marked, told, _ = steps(Trainer(TINY), tmp_path / "other", 6, stop=3)
    assert marked == [False, False, True] and told == [] and not lines_of(tmp_path / "other")
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]


@pytest.mark.parametrize("fails", ["start", "step", "stop"])
def test_a_profiler_that_fails_does_not_end_the_training(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, **given: Any) -> None:
            pass

        def __getattr__(self, name: str) -> Callable[[], None]:
            def called() -> None:
                if name == fails:
                    raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

            return called

    monkeypatch.setattr(breakdown, "profile", Broken)
    marked, told, met = steps(Trainer(TINY), tmp_path, 6)
    assert len(marked) == 6 and met == 3 and not lines_of(tmp_path)
    assert told == ["no step breakdown: RuntimeError: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"]
