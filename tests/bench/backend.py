"""torch.distributed through the wrapped groups of commbench.backend: is it the same, and what does a call cost?

`make bench ARGS=backend`. First torch's public API on 2, 3 and 4 ranks of gloo, with a profile that takes another
algorithm than the library for all that it can, against torch alone, bit for bit. Then the time of a call through the
wrapper beside that of the inner group: two ranks, by turns, a call of each.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from commbench.backend.group import WrappedGroup
from commbench.backend.install import install
from commbench.backend.source import ProfileSource
from commbench.profile import Profile, file
from tests.support import profiles
from tests.support.public_calls import everything
from tests.support.ranks import forked

_CALLS = 4000


def pairwise() -> Profile:
    """Another algorithm than the library's for all that moves data."""
    worth = replace(profiles.EVIDENCE, default_us=1e9)  # an exchange of counts pays
    return profiles.profile(
        profiles.choice("all_to_all", "pairwise"),
        profiles.choice("all_to_allv", "pairwise", evidence=[worth]),
    )


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


def cost(nbytes: int, *, asynchronous: bool, size: int = 2) -> dict[str, float]:
    """Return microseconds of a call on the inner group and through the wrapper, on the rank that is later."""
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
            times: dict[str, list[float]] = {"inner": [], "wrapped": []}
            for number in range(2 * _CALLS):
                name = ("inner", "wrapped")[(number + number // 2) % 2]
                group = world if name == "wrapped" else inner
                start = time.perf_counter()
                work = dist.all_to_all_single(out, inp, group=group, async_op=asynchronous)
                if work is not None:
                    work.wait()
                times[name].append(1e6 * (time.perf_counter() - start))
            if me == 0:
                (folder / "times").write_text(json.dumps(times))
            dist.barrier()
            dist.destroy_process_group()

        assert forked(size, rank) == [0] * size
        times = json.loads((folder / "times").read_text())
    pairs = [wrapped - inner for inner, wrapped in zip(times["inner"][50:], times["wrapped"][50:], strict=True)]
    found = {"difference": statistics.median(pairs)}
    for which in ("inner", "wrapped"):
        cut = statistics.quantiles(times[which][50:], n=100)
        found |= {which: cut[49], f"{which} p99": cut[98]}
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
    heads = ("ranks", "bytes", "call", "inner", "wrapped", "median of", "inner p99", "wrapped p99")
    print(" ".join(f"{head:>11}" for head in heads))
    for size in (1, 2):
        for nbytes in (4 * size, 1 << 20):
            for asynchronous in (False, True):
                found = cost(nbytes, asynchronous=asynchronous, size=size)
                cells = [str(size), str(nbytes), "async" if asynchronous else "sync"]
                cells += [f"{found[key]:.2f}" for key in ("inner", "wrapped", "difference", "inner p99", "wrapped p99")]
                print(" ".join(f"{cell:>11}" for cell in cells), flush=True)
