"""One-sided calls on GPUs, and two communicators of NCCL, back to back under random delays, every byte checked.

Before each call its input becomes the complement of what it was, so that the last result of the same buffers is wrong
everywhere; right after it the input is overwritten and the output read, with a delay before or after at random. So a
rank that writes before its peer has entered, or reads after it was told that all had arrived, is caught.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from typing import Any

from commbench import algorithms, collectives
from commbench.layout import Layout
from commbench.machine import gpus
from commbench.measure import buffers
from commbench.measure.verify import Checker
from commbench.spec import Spec
from commbench.units import format_size, parse_size
from tests.support.ranks import on_ranks

CALLS = 100_000
VOTE_AFTER = 2000  # calls
LONGEST_DELAY_US = 150
WAYS: tuple[tuple[str, str, dict[str, int], str], ...] = (
    ("all_to_all", "symm_store", {}, "1K"),
    ("all_to_all", "symm_store", {"packet_bytes": 0}, "1K"),
    ("all_to_all", "symm_store", {"ctas": 16}, "64K"),
    ("all_to_all", "symm_store", {}, "1M"),
    ("all_to_all", "symm_store", {}, "8M"),
    ("all_to_all", "symm_copy_engine", {}, "64K"),
    ("all_to_all", "symm_copy_engine", {"memops": 0}, "64K"),
    ("all_to_all", "symm_copy_engine", {"own_ctas": 16}, "1M"),
    ("all_to_allv", "symm_store", {}, "20000"),
    ("all_to_allv", "symm_store", {"packet_bytes": 0}, "20000"),
    ("all_to_allv", "symm_copy_engine", {}, "20000"),
)


def spec_of(collective: str, algorithm: str, params: dict[str, int], size: int, ranks: int) -> Spec:
    record, layout = collectives.get(collective), Layout(1, ranks)
    asked: dict[str, Any] = {key: item.default for key, item in record.arguments.items() if item.default is not None}
    if collective == "all_to_allv":
        asked |= {"splits": "zipf", "alpha": 1.2}
    size, arguments = record.settle(size, layout, asked)
    defaults = {key: default for key, (default, _) in algorithms.get(collective, algorithm).params.items()}
    return Spec(
        collective=collective, dtype="uint8", size_bytes=size, layout=layout, params={**defaults, **params},
        arguments=arguments, buffers="symmetric",
    )  # fmt: skip


def stress(transport: Any, spec: Spec, algorithm: str, calls: int, seed: int) -> dict[str, float]:
    """Wrong bytes of `calls` calls, all ranks together, and the seconds that they took."""
    import torch

    transport.case_begins({"size_bytes": spec.size_bytes})
    collective, way = collectives.get(spec.collective), algorithms.get(spec.collective, algorithm)
    rank = transport.rank
    pairs = buffers.allocate(transport, collective, spec, rank, 2, one_sided=True)
    transport.publish()
    bound = way.prepare(transport.world, spec)
    ready = bound.bind(pairs)
    checker = Checker(transport, collective, spec, rank, seed)
    expected = []
    for salt, (out, inp) in enumerate(pairs, start=1):
        checker.fill_input(inp, salt)
        right = torch.empty_like(out)
        checker.poison(right, salt)  # the complement of what the input gives now, which is what the first call gives
        expected.append(right)
        out.copy_(~right)
    wrong = torch.zeros((), dtype=torch.int64, device=pairs[0][0].device)
    chance = random.Random(f"{seed}/{rank}")
    cycles_per_us = 2000

    def maybe_late() -> None:
        if chance.random() < 0.2:
            torch.cuda._sleep(chance.randrange(1, LONGEST_DELAY_US * cycles_per_us))

    transport.barrier()
    began = time.perf_counter()
    for number in range(calls):
        which = number % 2
        out, inp = pairs[which]
        inp.bitwise_not_()
        maybe_late()
        if chance.random() < 0.002:
            time.sleep(chance.random() / 1e3)
        ready[which]()
        inp.bitwise_not_()  # the caller's again; what it holds now must not be what arrives
        inp.bitwise_not_()
        maybe_late()
        wrong += (out != expected[which]).sum()
        expected[which].bitwise_not_()
        if number % VOTE_AFTER == VOTE_AFTER - 1:
            transport.barrier()
    total = float(transport.all_gather([float(wrong)]).sum())
    seconds = time.perf_counter() - began
    bound.close()
    return {"wrong": total, "seconds": seconds}


def two_communicators(transport: Any, nbytes: int, calls: int, seed: int) -> dict[str, float]:
    """Exchanges of two communicators of NCCL in flight together, as pipelined algorithms have them."""
    import torch

    transport.case_begins({"size_bytes": nbytes})
    transport.overlap(True)
    comms = [transport.world, transport.world.subgroup([list(range(transport.size))])]
    chance, rank, size = random.Random(f"{seed}/{transport.rank}"), transport.rank, transport.size
    part = nbytes // size
    inputs, outputs = ([comm.empty(part * size) for comm in comms] for _ in range(2))
    wrong = torch.zeros((), dtype=torch.int64, device=inputs[0].device)
    transport.barrier()
    began = time.perf_counter()
    for number in range(calls):
        works = []
        for which, comm in enumerate(comms):  # the same order on all ranks
            for peer in range(size):
                inputs[which][peer * part : (peer + 1) * part].fill_((number + 3 * which + 16 * rank + peer) % 251)
            if chance.random() < 0.1:
                torch.cuda._sleep(chance.randrange(1, LONGEST_DELAY_US * 2000))
            works.append(comm.all_to_all(outputs[which], inputs[which], step="all"))
        for which, work in enumerate(works):
            work.wait()
            for peer in range(size):
                right = (number + 3 * which + 16 * peer + rank) % 251
                wrong += (outputs[which][peer * part : (peer + 1) * part] != right).sum()
        if number % VOTE_AFTER == VOTE_AFTER - 1:
            transport.barrier()
    total = float(transport.all_gather([float(wrong)]).sum())
    transport.overlap(False)
    return {"wrong": total, "seconds": time.perf_counter() - began}


def run(ranks: int, calls: int, seed: int, *, most_bytes: int = 1 << 40) -> list[dict[str, Any]]:
    def each(transport: Any) -> list[dict[str, Any]]:
        found = []

        def tell(label: str, size: int, made: int, result: dict[str, float]) -> None:
            found.append({"way": label, "size": size, "calls": made, **result})
            if transport.rank == 0:
                print(f"{label:<45} {format_size(size):>9} {made:>8} calls, "
                      f"{result['wrong']:.0f} wrong, {result['seconds']:.1f} s", flush=True)  # fmt: skip

        for collective, algorithm, params, text in WAYS:
            spec = spec_of(collective, algorithm, params, min(parse_size(text), most_bytes), ranks)
            result = stress(transport, spec, algorithm, calls, seed)
            label = " ".join([collective, algorithm, *(f"{key}={value}" for key, value in params.items())])
            tell(label, spec.size_bytes, calls, result)
        few, nbytes = max(1, calls // 20), min(1 << 20, most_bytes)
        tell("two communicators in flight", nbytes, few, two_communicators(transport, nbytes, few, seed))
        return found

    answer: list[dict[str, Any]] = on_ranks("nccl", ranks, each)
    return answer


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench stress", description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--gpus", type=int, default=gpus.count(os.environ))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words or [])
    if given.gpus < 2:
        print("needs two GPUs")
        return 0
    return int(any(result["wrong"] for result in run(given.gpus, given.calls, given.seed)))
