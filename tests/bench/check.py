"""`commbench check`: plants named and healthy fleets left alone, on drawn samples by the hundred and on emulated ones.

python -m tests.bench.check drawn [300]         samples drawn by rule, judged: healthy ones, then each plant
python -m tests.bench.check emulated FILE [N]   whole checks of 30 s on 4 nodes x 2 ranks (Linux), N of each plant and
                                                5/2 N healthy ones; goes on where FILE stops; --seconds S: for so long
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from commbench.check.judge import judge
from tests.conftest import commbench
from tests.emulated.throttle import throttled
from tests.support import drawn_checks, machines

CLUSTER = ("transport=gloo", "fabric=emulated", "nodes=4", "ranks_per_node=2", "link=500mbit", "intra_link=500mbit",
           "sizes.max=512K")  # fmt: skip
_PATIENCE_S = 1800  # others may use the machine
FACTOR, NIC_FACTOR, BUSY_FACTOR = 3.0, 2.0, 1.5
HEALTHY, LINK, RANK, BOTH, CPU, NIC = "healthy", "slow link", "slow rank", "link and rank", "busy CPU", "NIC rate"
PLANTS = (LINK, CPU, NIC, RANK, BOTH)  # the last two take long, as all wait for a rank that rests


def is_one(named: Mapping[str, Any], kind: str, factor: float | None = None, **about: Any) -> bool:
    """Whether this is named, with its factor inside the interval."""
    right = named["kind"] == kind and all(named.get(key) == value for key, value in about.items())
    return right and (factor is None or named["low"] <= factor <= named["high"])


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """A process that uses a CPU, and has nothing to do with the check."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def recorded(folder: Path, slow: int) -> list[str]:
    """Four recorded machines of which one has cards of half the rate."""
    words = []
    for node in range(4):
        files = machines.tree("ndv4")
        if node == slow:
            files |= {path: text.replace("200 Gb/sec (4X HDR)", "100 Gb/sec (2X HDR)")
                      for path, text in files.items() if path.endswith("/rate")}  # fmt: skip
        words += ["--machine", f"node{node}={machines.unpack(files, folder / f'machine{node}')}"]
    return words


def emulated(plant: str, seed: int) -> dict[str, Any]:
    """One check; what was planted, what was named, and whether that is right."""
    rng = random.Random(f"{plant}/{seed}")
    node, other = rng.sample(range(4), 2)
    rank, way = 2 * other + rng.randrange(2), rng.choice(("out", "both"))
    slow_link = f"slow_link=node{node}:{FACTOR:g}:{way}" if plant in (LINK, BOTH) else "slow_link=none"
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as planted:
        out = Path(name)
        if plant in (RANK, BOTH):
            planted.enter_context(throttled(out, rank))
        if plant == CPU:
            planted.enter_context(busy())
        more = recorded(out / "machines", node) if plant == NIC else []
        began = time.monotonic()
        done = commbench("check", *CLUSTER, slow_link, f"seed={seed}", "budget=30s", *more, "--out", str(out), "-q",
                         "--format", "json", cwd=out, timeout=_PATIENCE_S)  # fmt: skip
        wall = time.monotonic() - began
    if done.returncode not in (0, 1, 3):
        return {"right": False, "error": done.stderr[-500:], "named": [], "verdict": "", "wall": wall}
    found = json.loads(done.stdout)
    expected: dict[str, list[Callable[[Mapping[str, Any]], bool]]] = {
        HEALTHY: [],
        LINK: [lambda one: is_one(one, "link", FACTOR, nodes=[node], direction=way)],
        RANK: [lambda one: is_one(one, "rank", ranks=[rank])],
        CPU: [lambda one: is_one(one, "cpu", BUSY_FACTOR)],
        NIC: [lambda one: is_one(one, "hardware", NIC_FACTOR, nodes=[node])],
    }
    expected[BOTH] = expected[LINK] + expected[RANK]
    wanted = expected[plant]
    # A rank that rests is slow to receive and, to another degree, to send: it may be named for each.
    right = all(any(is_it(one) for one in found["named"]) for is_it in wanted)
    right &= all(any(is_it(one) for is_it in wanted) for one in found["named"])
    return {
        "right": right and found["verdict"] == ("not_healthy" if wanted else "healthy"),
        "planted": f"node {node} {way}, rank {rank}",
        "verdict": found["verdict"],
        "doubts": found["doubts"],
        "named": [one["sentence"] for one in found["named"]],
        "noise": found["noise"],
        "launches": found["launches"],
        "wall": round(wall, 1),
    }


def run_emulated(path: Path, each: int, seconds: float) -> None:
    """Run all kinds in turn, and print what the file has."""
    began = time.monotonic()
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(line["plant"], line["seed"]) for line in lines}
    todo = [(plant, seed) for seed in range(5 * each // 2) for plant in (HEALTHY, *PLANTS)
            if plant == HEALTHY or seed < each]  # fmt: skip
    with open(path, "a") as file:
        for plant, seed in todo:
            if (plant, seed) in known or time.monotonic() - began > seconds:
                continue
            line = {"plant": plant, "seed": seed, **emulated(plant, seed)}
            file.write(json.dumps(line) + "\n")
            file.flush()
            lines.append(line)
            print(json.dumps(line), flush=True)
    totals: dict[str, list[bool]] = defaultdict(list)
    for line in lines:
        totals[line["plant"]].append(line["right"])
    for plant, right in totals.items():
        print(f"{plant}: right in {sum(right)} of {len(right)}")


def run_drawn(count: int) -> None:
    """Judge drawn checks: healthy ones, quiet and noisy, and joined ones; then a slow link and a slow rank."""
    of, joined = drawn_checks.cases(), drawn_checks.cases(joined=True)
    kinds: Sequence[tuple[str, int, dict[str, Any]]] = (
        ("healthy", count, {}),
        ("healthy, noise 10 %, launches 30 % apart", count, {"noise": 0.1, "launch_noise": 0.3}),
        ("healthy, in one launch of a launcher's ranks", count // 3, {"joined": True, "of": joined}),
    )
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        for number, (kind, runs, more) in enumerate(kinds):
            verdicts: Counter[str] = Counter()
            for seed in range(runs):
                report = judge(drawn_checks.draw(out, 10_000 * number + seed, **{"of": of, **more}))
                verdicts[report.verdict] += 1
                if report.verdict != "healthy":
                    print(f"  seed {seed}: {[one.sentence for one in report.named]} {report.doubts}")
            print(f"{kind}: {dict(verdicts)}", flush=True)
        for kind in (LINK, RANK, BOTH):
            right = 0
            for seed in range(count // 3):
                node, way, rank = seed % 4, ("out", "in", "both")[seed % 3], 2 * ((seed + 1) % 4) + seed % 2
                link, slow = (node, way, FACTOR) if kind != RANK else None, (rank, 2.0) if kind != LINK else None
                report = judge(drawn_checks.draw(out, 90_000 + seed, of=of, slow_link=link, slow_rank=slow))
                named = [one.as_dict() for one in report.named]
                wanted = [is_one(one, "link", FACTOR, nodes=[node], direction=way) for one in named] if link else []
                wanted_rank = [is_one(one, "rank", 2.0, ranks=[rank]) for one in named] if slow else []
                good = (not link or sum(wanted) == 1) and (not slow or sum(wanted_rank) == 1)
                right += good and len(named) == bool(link) + bool(slow)
                if not good:
                    print(f"  seed {seed}: {node} {way}, rank {rank}: {[one['sentence'] for one in named]}")
            print(
                f"{kind}: named, nobody else, and the factor inside the interval in {right} of {count // 3}", flush=True
            )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="check")
    parser.add_argument("kind", choices=("drawn", "emulated"))
    parser.add_argument("words", nargs="*")
    parser.add_argument("--seconds", type=float, default=1e9)
    asked = parser.parse_args(arguments)
    if asked.kind == "drawn":
        run_drawn(int(asked.words[0]) if asked.words else 300)
    else:
        run_emulated(Path(asked.words[0]), int(asked.words[1]) if len(asked.words) > 1 else 4, asked.seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
