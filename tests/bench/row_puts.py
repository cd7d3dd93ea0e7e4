"""dispatch and combine on the GPUs of one host: our one-sided kernels beside NCCL and torch's all_to_all_vdev_2d.

Every way is checked first, on data of some calls, eager and replayed. `isolated`: one call, from the time when the
ranks' streams have met; `graph`: twenty calls in a CUDA graph, each. Medians of the slowest rank's times, in
microseconds. `bound`: rows that must cross, at the rate of the copy engines in this run. The ways take turns, twice.

all_to_all_vdev_2d brings rows that lie sorted already, a copy for each choice; `permuted` has the sorting in front, and
behind a combine the sum over choices. Its ranks are processes of their own, as torch has one kind of symmetric memory
in a process.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from commbench import algorithms, collectives
from commbench.layout import Layout
from commbench.machine import gpus
from commbench.measure import buffers
from commbench.measure.samples import take
from commbench.measure.verify import Checker
from commbench.spec import Spec
from tests.bench import vdev_2d
from tests.support.ranks import on_ranks

SAMPLES, WARMUP = 40, 5
IN_GRAPH = 20
BLOCKS = (16, 32, 64, 96, 128)


class Shape(NamedTuple):
    """tokens of each rank, elements of a row, experts of a token, experts."""

    tokens: int
    model_dim: int
    top_k: int
    experts: int

    def __str__(self) -> str:
        return f"{self.tokens} x {self.model_dim} bf16, top-{self.top_k} of {self.experts}"


class Way(NamedTuple):
    collective: str
    algorithm: str
    counts: str = "cached"
    output: str = "expert"
    params: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        told = f" counts={self.counts}" if self.collective == "dispatch" else ""
        return " ".join([f"{self.algorithm}{told} output={self.output}", *(f"{key}={n}" for key, n in self.params)])


LIKE_KRAKEN, TOP_8, DECODE = Shape(4096, 4096, 1, 8), Shape(4096, 4096, 8, 32), Shape(128, 7168, 8, 256)
SMALL = Shape(333, 1032, 3, 12)


def spec_of(way: Way, shape: Shape, ranks: int) -> Spec:
    algorithm, of, layout = (
        algorithms.get(way.collective, way.algorithm),
        collectives.get(way.collective),
        Layout(1, ranks),
    )
    asked = {key: item.default for key, item in of.arguments.items() if item.default is not None}
    row = 2 * shape.model_dim
    asked |= {"row_bytes": row, "top_k": shape.top_k, "experts": shape.experts, "output": way.output}
    if way.collective == "dispatch":
        asked["counts"] = way.counts
    size, arguments = of.settle(shape.tokens * row, layout, asked)
    params = {key: default for key, (default, _) in algorithm.params.items()} | dict(way.params)
    return Spec(
        collective=way.collective, dtype="bf16", size_bytes=size, layout=layout, params=params, arguments=arguments,
        buffers="symmetric" if algorithm.one_sided else "plain",
    )  # fmt: skip


def measured(transport: Any, way: Way, shape: Shape) -> dict[str, float | str]:
    """Times of a way, and how many elements were wrong before."""
    spec = spec_of(way, shape, transport.size)
    algorithm, of, rank = algorithms.get(way.collective, way.algorithm), collectives.get(way.collective), transport.rank
    if reason := algorithm.unsupported(spec):
        return {"skipped": reason}
    transport.case_begins({"size_bytes": spec.size_bytes})
    pairs = buffers.allocate(transport, of, spec, rank, 1, one_sided=algorithm.one_sided)
    transport.publish()
    bound = algorithm.prepare(transport.world, spec)
    (call,) = ready = bound.bind(pairs)
    checker, wrong = Checker(transport, of, spec, rank, 5), 0

    def checked(run: Any, salt: int) -> int:
        ((out, inp),) = pairs
        checker.poison(out, salt)
        checker.fill_input(inp, salt)
        transport.barrier()
        if (work := run()) is not None:
            work.wait()
        return int(checker.count_wrong(out, salt))

    wrong = sum(checked(call, salt) for salt in (1, 2, 3))
    timer, found = transport.timer("isolated"), {}
    times = take(timer, ready, 0, WARMUP + SAMPLES, 1).columns[0]
    found["isolated"] = statistics.median(transport.all_gather(times)[:, WARMUP:].max(axis=0).tolist())
    if bound.capturable:
        replay = transport.capture([call] * IN_GRAPH)
        wrong += sum(checked(replay, salt) for salt in (4, 5))
        times = take(timer, ready, 0, WARMUP + SAMPLES // 2, IN_GRAPH, replay).columns[0]
        found["graph"] = statistics.median(transport.all_gather(times)[:, WARMUP:].max(axis=0).tolist())
    found["wrong"] = float(transport.all_gather([float(wrong)]).sum())
    transport.barrier()
    bound.close()
    return found


def bound_us(transport: Any, shape: Shape) -> float:
    """The rows that must come to a rank from others, or leave it, at the rate of the copy engines."""
    spec = spec_of(Way("dispatch", "per_rank"), shape, transport.size)
    counts = collectives.get("dispatch").needs(spec)
    rate = transport.links().get("intra")
    return max((need.nbytes for need in counts), default=0.0) / rate.gbps / 1e3 if rate else float("nan")


def told(transport: Any, label: str, found: dict[str, Any]) -> None:
    if transport.rank == 0:
        words = "  ".join(f"{key} {value:9.2f}" if isinstance(value, float) else value for key, value in found.items())
        print(f"  {label:<66} {words}", flush=True)


def correct(transport: Any) -> None:
    """Every way, argument and shape, small: no times."""
    one_sided = ("symm_per_rank", "symm_slots")
    for shape, output, algorithm in itertools.product((SMALL, DECODE), ("expert", "rank"), one_sided):
        for counts in ("device", "cached", "host"):
            told(
                transport,
                f"{shape}: {(way := Way('dispatch', algorithm, counts, output))}",
                measured(transport, way, shape),
            )
        told(
            transport,
            f"{shape}: combine {(way := Way('combine', algorithm, '', output))}",
            measured(transport, way, shape),
        )


def ways(shape: Shape) -> Iterator[Way]:
    slots = ("symm_slots",) if shape.tokens <= 1024 else ()
    for algorithm in ("symm_per_rank", *slots):
        yield Way("dispatch", algorithm, "device")
        yield Way("dispatch", algorithm)
    for algorithm, counts in itertools.product(("per_choice", "per_rank"), ("cached", "host")):
        yield Way("dispatch", algorithm, counts)
    for algorithm in ("symm_per_rank", *slots, "per_choice", "per_rank"):
        yield Way("combine", algorithm)
    if shape.top_k > 1:
        for collective, algorithm in itertools.product(("dispatch", "combine"), ("symm_per_rank", "per_rank")):
            yield Way(collective, algorithm, output="rank")


def timed(transport: Any, shapes: Sequence[Shape]) -> None:
    for shape in shapes:
        if transport.rank == 0:
            print(f"{shape}: bound {bound_us(transport, shape):.1f} us", flush=True)
        for number in range(2):
            for way in list(ways(shape))[:: 1 - 2 * number]:
                told(transport, f"{way.collective} {way}", measured(transport, way, shape))


def tuned(transport: Any, shape: Shape) -> None:
    """By blocks of threads, threads in each, and pieces that a thread holds."""
    from commbench_kernels import compiler, routed

    kernel = compiler.kernel
    for threads, unroll, blocks in itertools.product((256, 512, 1024), (4, 8), BLOCKS):
        routed.THREADS = threads

        def with_unroll(name: str, function: str, device: int, unroll: int = unroll, **defines: int) -> Any:
            return kernel(name, function, device, **defines, **({"UNROLL": unroll} if name == routed.SOURCE else {}))

        compiler.kernel = with_unroll
        for collective in ("dispatch", "combine"):
            if (collective == "combine" and (unroll == 8 or threads == 1024)) or (threads, unroll) == (1024, 8):
                continue  # not another kernel; more registers than there are
            way = Way(collective, "symm_per_rank", "device", params=(("ctas", blocks),))
            told(transport, f"{collective} {threads} threads, {unroll} pieces: {way}", measured(transport, way, shape))
    compiler.kernel, routed.THREADS = kernel, 512


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench row_puts", description=__doc__)
    parser.add_argument("--gpus", type=int, default=gpus.count(os.environ))
    parser.add_argument("parts", nargs="*", default=["correct", "timed", "vdev_2d", "tuned"])
    given = parser.parse_args(words or [])
    if given.gpus < 1:
        print("needs a GPU")
        return 0
    parts = {
        "correct": correct,
        "timed": lambda transport: timed(transport, (LIKE_KRAKEN, DECODE, TOP_8)),
        "tuned": lambda transport: tuned(transport, LIKE_KRAKEN),
    }
    failed = 0
    for name in given.parts:
        began = time.perf_counter()
        try:
            if name == "vdev_2d":
                vdev_2d.main(["--gpus", str(given.gpus)])
            else:
                on_ranks("nccl", given.gpus, parts[name])
        except Exception:
            traceback.print_exc()
            failed += 1
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return failed
