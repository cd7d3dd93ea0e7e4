"""`--launcher print`: a sweep as a job script, with the commands that join each of its launches by hand as comments."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

from commbench import transports
from commbench import variables as effective
from commbench.launch import mpiexec, slurm
from commbench.records import Setup

# Keys that hold one value in a launch that is joined: the command of each set-up says which.
_ONE_VALUE = ("transport", "nodes", "ranks_per_node", "layout", "binding", "cpu_masks", "binding_memory", "launches")
_DIALECTS = {"mpich": "MPICH", "intel": "Intel MPI", "openmpi": "Open MPI"}
_PORT = 29400


def text(
    words: Sequence[str],
    setups: Sequence[Setup],
    *,
    seconds: float,
    options: Sequence[str] = (),
    python: str = sys.executable,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Return a bash script for sbatch: `commbench sweep WORDS OPTIONS`, in about `seconds`, on the set-ups `setups`.

    Every line of it can be run, those in comments too.
    """
    minutes = math.ceil(2 * seconds / 60) + 10
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=commbench",
        f"#SBATCH --nodes={max(setup.nodes for setup in setups)}",
        f"#SBATCH --ntasks-per-node={max(setup.ranks_per_node for setup in setups)}",
        "#SBATCH --exclusive",
        f"#SBATCH --time={minutes}",
        "#SBATCH --no-requeue",
        "# A minute before the time is over the sweep is asked to stop; --resume goes on where it was.",
        "#SBATCH --signal=B:TERM@60",
        "#",
        "# Submit this file with sbatch, from a folder that all nodes see. What your site asks for besides goes on the",
        "# command line: sbatch --partition=... --account=... FILE",
        "#",
        "# One launch of it can also be joined by hand; its intervals are then those of one launch.",
    ]
    # A recipe may say so, and then each command has to.
    bound = any(setup.binding != "none" for setup in setups)
    for setup in setups:
        narrowed = _narrowed(words, setup, bound)
        lines += ["#", *(f"# {line}" for line in _by_hand(words, narrowed, options, setup, python, environ))]
    command = [python, "-m", "commbench", "sweep", *words, *options, "--launcher", "slurm"]
    return "\n".join([*lines, "", f"exec {_quoted(command)}", ""])


def _by_hand(
    words: Sequence[str],
    narrowed: Sequence[str],
    options: Sequence[str],
    setup: Setup,
    python: str,
    environ: Mapping[str, str],
) -> Iterator[str]:
    """Yield lines that say how to start one set-up under each launcher that its transport can do with."""
    yield f"== {' '.join(str(setup).split())}"
    given = {word.removeprefix("env.").partition("=")[0] for word in words if word.startswith("env.")}
    if own := [name for name in setup.env if name not in given]:
        yield f"Not by hand: the recipe itself sets {', '.join(own)}."
        return
    layout = setup.layout
    sweep = ["commbench", "sweep", *narrowed, *options]
    variables = effective.applied({"OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS", "1")}, setup.env)
    without = [word for name, value in setup.env.items() if value == effective.UNSET for word in ("-u", name)]
    setting = ["env", *without, *(f"{name}={value}" for name, value in variables.items())]
    rank = [*setting, python, "-m", *sweep]
    able = transports.entry(setup.transport).launchers
    if "torchrun" in able:
        torchrun = [*setting, python, "-m", "torch.distributed.run"]
        yield "torchrun, on one machine:"
        yield f"  {_quoted([*torchrun, '--standalone', f'--nproc-per-node={layout.ranks}', '-m', *sweep])}"
        if layout.nodes > 1:
            yield f"torchrun, the same on each of {layout.nodes} nodes, with the name of one of them in FIRST_NODE:"
            spread = [f"--nnodes={layout.nodes}", f"--nproc-per-node={layout.ranks_per_node}"]
            spread += ["--rdzv-backend=c10d", "--rdzv-id=commbench"]
            endpoint = f'--rdzv-endpoint="${{FIRST_NODE:?}}:{_PORT}"'
            yield f"  {_quoted([*torchrun, *spread])} {endpoint} {_quoted(['-m', *sweep])}"
    if "mpiexec" in able:
        for dialect, name in _DIALECTS.items():
            yield f"mpiexec of {name}{', on one machine or with a hostfile of yours' if layout.nodes > 1 else ''}:"
            yield f"  {_quoted(mpiexec.words(dialect, 'mpiexec', layout.ranks, rank, per_node=layout.ranks_per_node))}"
    if "slurm" in able:
        yield "srun, inside an allocation:"
        yield f"  {_quoted(['srun', *slurm.step_size(layout), *slurm.STEP, *rank])}"
    if not {"torchrun", "mpiexec", "slurm"} & set(able):
        yield f"Not by hand: transport {setup.transport} runs under --launcher {' or '.join(able)} only."


def _narrowed(words: Sequence[str], setup: Setup, bound: bool) -> list[str]:
    """Return the words for one set-up alone, with its binding where some are bound."""
    keys = [word.partition("=")[0] if "=" in word else "" for word in words]  # the recipe has none
    kept = [word for word, key in zip(words, keys, strict=True) if key not in _ONE_VALUE and key[:4] != "env."]
    place = [f"transport={setup.transport}", f"nodes={setup.nodes}", f"ranks_per_node={setup.ranks_per_node}"]
    place += [f"binding={setup.binding}"] if bound else []
    place += [f"cpu_masks={setup.cpu_masks}"] if setup.cpu_masks else []
    place += [] if setup.binding_memory else ["binding_memory=off"]
    return [*kept, *place]


def _quoted(words: Sequence[str]) -> str:
    """Quote for bash, and on one line: a line break would end a comment. shlex puts them between single quotes."""
    return shlex.join(words).replace("\n", "'$'\\n''")
