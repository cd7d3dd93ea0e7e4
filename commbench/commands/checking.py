"""`commbench check`, as the command line has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from commbench.commands.completing import words_of
from commbench.commands.options import FiniteRange, WithKeys, allow_env

_LAUNCHERS = ("local", "torchrun", "mpiexec", "slurm")


@click.command(
    cls=WithKeys,
    keys="commbench.check.keys",
    short_help="Is it healthy? One verdict, with names and evidence.",
    epilog="Exit codes: 0 healthy, 1 not healthy, 3 cannot tell, 2 usage or environment, 130 interrupted.",
)
@click.argument("words", nargs=-1, metavar="[KEY=VALUE ...]", shell_complete=words_of("check"))
@click.option("--against", type=click.Path(path_type=Path), metavar="RUN",
              help="An earlier check: what has become slower since then?")  # fmt: skip
@click.option("--bundle", type=click.Path(path_type=Path), metavar="FILE.tar.gz", help="Write one file to send.")
@click.option("--anonymous", is_flag=True, help="Of --bundle: leave out hosts, users, paths, addresses and serials.")
@click.option("--machine", "machines", multiple=True, metavar="[nodeN=]DIR",
              help="Take a node's hardware from a recorded machine (topo --record); several times.")  # fmt: skip
@click.option("--effect", type=FiniteRange(1, 1e6, min_open=True), default=1.3, show_default=True, metavar="X",
              help="How many times slower counts as slow.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, metavar="DIR",
              help="Parent of run folders.")  # fmt: skip
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a check that was stopped.")
@click.option("--launcher", type=click.Choice(_LAUNCHERS),
              help="Starts the ranks; default: local, for MPI mpiexec, on several nodes of Slurm slurm.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True,
              help="Of what is printed on stdout; json: one object.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what would be measured, and measure nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@allow_env("the run to go on with")
def check(words: tuple[str, ...], format_: str, **options: Any) -> int:
    """Look at every host and every pair of ranks, at the all-to-all and its bound, and say whether all is well.

    Under torchrun, mpiexec or srun it joins as a rank, and rank 0 answers. Where an allocation of Slurm has several
    nodes it starts its own steps on all of them.

    \b
    commbench check
    commbench check budget=30s --format json
    commbench check nodes=16 ranks_per_node=8 transport=nccl --against results/last-week
    torchrun --nproc-per-node=4 --no-python commbench check
    """
    from commbench.rank_info import detect

    if detect(os.environ):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    from commbench.commands import check as command

    return command.run(command.CheckRequest(words=words, format=format_, **options))


COMMANDS = (check,)
