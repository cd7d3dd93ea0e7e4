"""`make bench`: what commbench itself costs, measured side by side. Prints tables; asserts nothing.

make bench                      everything (some minutes)
make bench ARGS="bare kills"    some of it
make bench ARGS="nccl -h"       on GPUs, beside nccl-tests; what follows `nccl` are its arguments
make bench ARGS="stress -h"     on GPUs, calls under random delays, all of them checked; likewise
make bench ARGS="vdev -h"       on GPUs, uneven exchanges beside torch's NVSHMEM all_to_all_vdev; likewise
make bench ARGS="moe -h"        on a GPU, the reference layer by index over its dense baselines; likewise
make bench ARGS="helloworld -h" on GPUs, the reference layer under the conditions of Tutel's helloworld; likewise
make bench ARGS="graphs -h"     on a GPU, our layer and its step from CUDA graphs, beside the eager one; likewise
make bench ARGS="recipes -h"    on a GPU, layers of today's models beside torch's grouped product; likewise
make bench ARGS="host_copies"    on a GPU, plain copies to and from its host, as nvbandwidth times them
make bench ARGS="offload -h"    on a GPU, activations kept on the host, beside recomputing them, in too little memory
make bench ARGS="expert_groups" on a GPU, the rule for groups of experts against what passes take; --small on a CPU
make bench ARGS="osu -h"        over MPI, beside OSU's osu_alltoall, which is built elsewhere; likewise
python -m tests.bench.faults DIR  1,000 injected faults, each with a resume; as root, an hour; goes on where it stopped
make bench ARGS="row_puts -h"   on GPUs, dispatch and combine by our kernels, NCCL and NVSHMEM; likewise `vdev_2d -h`
make bench ARGS="profile -h"    on GPUs, what a profile is worth beside torch's own call; likewise
make bench ARGS="fresh -h"      what data of their own for each call do to the times; likewise
make bench ARGS="plants OUT"    wrong results that come and go, by the hundred; goes on where the file OUT stops
make bench ARGS="held_out OUT"  the cost model on layouts that no fit has seen; goes on where the folder OUT stops
make bench ARGS="plan link=100mbit"  the planner's regret on an emulated cluster; goes on where it stopped
make bench ARGS="routed 500 1000"  mistakes with rows in dispatch and combine, and right runs
make bench ARGS="dispatch bytes OUT"  bytes of dispatches by formula and by counters; `measure`, `judge`: the cost model
"""

from __future__ import annotations

import importlib
import sys

# Modules with a `main`. Loaded when they run, as not each machine has what all of them import.
BENCHES = (
    "startup", "harness", "bare", "imb", "kills", "emulated", "stragglers", "model", "communicator", "planted", "tune",
    "schedules", "verdicts", "stop", "power", "backend", "ab", "record", "square_cube",
)  # fmt: skip
WITH_ARGUMENTS = (
    "nccl", "stress", "vdev", "profile", "moe", "helloworld", "graphs", "fresh", "plants", "osu", "routed", "dispatch",
    "recipes", "held_out", "host_copies", "offload", "expert_groups", "row_puts", "vdev_2d",
    "plan",
)  # fmt: skip


def main() -> None:
    names = sys.argv[1:] or list(BENCHES)
    if names[0] in WITH_ARGUMENTS:
        sys.exit(importlib.import_module(f"tests.bench.{names[0]}").main(names[1:]))
    for name in names:
        if name not in BENCHES:
            sys.exit(f"error: unknown bench {name!r}; known: {', '.join([*BENCHES, *WITH_ARGUMENTS])}")
    for name in names:
        print(f"## {name}", flush=True)
        importlib.import_module(f"tests.bench.{name}").main()
        print(flush=True)


if __name__ == "__main__":
    main()
