"""torch.distributed through the wrapped groups of commbench.backend: is it the same, and what does a call cost?

`make bench ARGS=backend`. First torch's public API on 2, 3 and 4 ranks of gloo, with a profile that takes another
algorithm than the library for all that it can, against torch alone, bit for bit. Then the time of a call through the
wrapper beside that of the inner group, by turns, a call of each; what is done is kept in results/backend-bench.jsonl.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from commbench.backend.group import WrappedGroup
from commbench.backend.install import install
from commbench.backend.source import ProfileSource
from commbench.profile import Profile, file
from tests.bench.kept import by_launch, said
from tests.support import profiles
from tests.support.public_calls import everything
from tests.support.ranks import forked

FILE = Path("results/backend-bench.jsonl")
_LAUNCHES = 12
_CALLS, _BLOCK, _WARMUP = 4000, 1000, 50  # of each arm in a launch; a block has one p99
_COLUMNS = ("inner", "more", "inner p99", "p99 more", "processor more", "processor p99 more")


def pairwise() -> Profile:
    """Another algorithm than the library's for all that moves data."""
    return profiles.profile(profiles.choice("all_to_all", "pairwise"), profiles.choice("all_to_allv", "pairwise"))


def same(size: int, profile: Path | None) -> list[dict[str, str]]:
    """Return what all ranks found, through wrapped groups if there is a profile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def rank(me: int) -> None:
            torch.set_num_threads(1)
            if profile is not None:
                source = ProfileSource(profile)
                install(lambda: source)
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=me, world_size=size)
            assert isinstance(dist.group.WORLD, WrappedGroup) == (profile is not None)
            found = everything(folder)
            if profile is not None:
                told = dist.group.WORLD.profiled.explain()  # type: ignore[union-attr]
                found["by the profile"] = str(told.count("pairwise window=1\n"))
            (folder / str(me)).write_text(json.dumps(found))
            dist.barrier()
            dist.destroy_process_group()

        codes = forked(size, rank)
        assert not any(codes), codes
        return [json.loads((folder / str(me)).read_text()) for me in range(size)]


def cost(size: int, nbytes: int, asynchronous: bool) -> dict[str, float]:
    """Return microseconds of a call on the inner group, and how much more through the wrapper: median and p99.

    One launch, of a call each in turn; rank 0's. p99 is that of 1000 calls of each arm, block by block, and the
    median over blocks is taken. `processor`: of this thread's own time, which others on the machine take nothing from.
    """
    profile = profiles.profile(profiles.choice("all_to_all", "direct"), profiles.choice("all_gather", "direct"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file.save(profile, folder / "p.json")

        def rank(me: int) -> None:
            torch.set_num_threads(1)
            source = ProfileSource(folder / "p.json")
            install(lambda: source)
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=me, world_size=size)
            world = dist.group.WORLD
            assert isinstance(world, WrappedGroup)
            inner = world.library_group()
            out, inp = torch.zeros(nbytes, dtype=torch.uint8), torch.zeros(nbytes, dtype=torch.uint8)
            took = np.zeros((2, 2, _WARMUP + _CALLS))  # of the clock and the processor; inner and wrapped
            for number in range(2 * (_WARMUP + _CALLS)):
                arm = (number + number // 2) % 2
                group = world if arm else inner
                began, spent = time.perf_counter_ns(), time.thread_time_ns()
                work = dist.all_to_all_single(out, inp, group=group, async_op=asynchronous)
                if work is not None:
                    work.wait()
                used, passed = time.thread_time_ns() - spent, time.perf_counter_ns() - began
                took[:, arm, number // 2] = passed / 1e3, used / 1e3
            if me == 0:
                (folder / "found").write_text(json.dumps(_summary(took[:, :, _WARMUP:])))
            dist.barrier()
            dist.destroy_process_group()

        assert forked(size, rank) == [0] * size
        found: dict[str, float] = json.loads((folder / "found").read_text())
        return found


def _summary(took: np.ndarray) -> dict[str, float]:
    found = {}
    for which, times in zip(("", "processor "), took, strict=True):
        inner, wrapped = np.quantile(times.reshape(2, -1, _BLOCK), 0.99, axis=2)
        found |= {
            f"{which}inner": float(np.median(times[0])),
            f"{which}more": float(np.median(times[1] - times[0])),
            f"{which}inner p99": float(np.median(inner)),
            f"{which}p99 more": float(np.median(wrapped - inner)),  # of one block, whose disturbances both have met
        }
    return found


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json"
        file.save(pairwise(), path)
        for size in (2, 3, 4):
            ours, torchs = same(size, path), same(size, None)
            differing = {
                name for mine, other in zip(ours, torchs, strict=True) for name in other if mine[name] != other[name]
            }
            by_profile = ours[0].pop("by the profile")
            print(f"{size} ranks: {len(torchs[0])} calls, differing: {sorted(differing) or 'none'}; {by_profile} kinds "
                  "of calls by the profile", flush=True)  # fmt: skip
    kinds = [(size, nbytes, later) for size in (1, 2) for nbytes in (4 * size, 1 << 20) for later in (False, True)]
    print(f"us; median of {_LAUNCHES} launches [95 %]; processor: of the thread that calls, without waits")
    heads = ("ranks", "bytes", "call", "inner", "more", "inner p99", "p99 more", "processor more", "processor p99 more")
    print(" | ".join(heads))
    for kind, launches in by_launch(FILE, kinds, _LAUNCHES, cost).items():
        cells = [str(kind[0]), str(kind[1]), "async" if kind[2] else "sync"]
        cells += [said(one[key] for one in launches) for key in _COLUMNS]
        print(" | ".join(cells), flush=True)
