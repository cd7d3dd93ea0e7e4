"""Tuning against planted truths, over the scripted transport inside this process. (Minutes.)"""

from __future__ import annotations

from tests.support.planted_tunings import NOISE, InProcess, adopted, region, tune

WHERE = ("nodes=1", "ranks_per_node=2", "sizes.min=4K", "sizes.max=64K", "sizes.factor=4", "warmup=1", "iters=8")


def main() -> None:
    """200 tunings of the default against ways that are exactly as fast, then 20 each with 10 % and 1 %."""
    where = region(*WHERE)
    # Between two ranks, all ways send the same messages.
    for name, factor, seeds in (("nothing", 1.0, 200), ("10 %", 1 / 1.1, 20), ("1 %", 1 / 1.01, 20)):
        taken = 0
        for seed in range(seeds):
            script = {**NOISE, "factor": {"pairwise": factor}}
            found = adopted(tune(InProcess(script, seed), where))
            taken += any("pairwise" in label for label in found) if factor < 1 else bool(found)
        print(f"scripted, {name} to be found: adopted in {taken} of {seeds} tunings", flush=True)
