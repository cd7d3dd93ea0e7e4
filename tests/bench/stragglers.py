"""Twenty emulated clusters with a slow link and a slow rank, and twenty without: who is named? (Half an hour.)"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.emulated.stragglers import healthy, planted

RUNS = 20
AT_ONCE = 2  # with a slow rank, as all others wait for it most of the time


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:

        def sick(seed: int) -> bool:
            began = time.monotonic()
            expected, found = planted(seed, Path(folder) / f"planted-{seed}")
            right = sorted(found) == sorted(expected)
            told = "as planted" if right else f"NAMED {found}"
            print(f"seed {seed}: {', '.join(expected)}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
            return right

        def well(seed: int) -> bool:
            began = time.monotonic()
            found = healthy(seed, Path(folder) / f"healthy-{seed}")
            told = f"NAMED {found}" if found else "nobody named"
            print(f"seed {seed}: healthy: {told} ({time.monotonic() - began:.0f} s)", flush=True)
            return not found

        with ThreadPoolExecutor(AT_ONCE) as pool:
            right = sum(pool.map(sick, range(RUNS)))
        clean = sum(map(well, range(RUNS)))
    print(f"{RUNS} runs with a slow link and a slow rank: both and nobody else named in {right}")
    print(f"{RUNS} healthy runs: nobody named in {clean}")
