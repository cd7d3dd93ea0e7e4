"""Commands before somebody's program, as the command line has them: `commbench ab .. -- torchrun train.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from commbench.commands.completing import words_of
from commbench.commands.options import WithKeys, WithProgram, allow_env, trusted_files


class _ProgramWithKeys(WithProgram, WithKeys):
    """One whose words before `--` are keys, which its help lists."""


@click.command(
    cls=_ProgramWithKeys,
    keys="commbench.ab.plan",
    short_help="What a profile or a setting is worth in the step time of any program.",
    epilog="Exit codes: 0 there is an answer, 1 the baseline fails, 2 usage or environment, 130 interrupted.",
)
@click.argument("words", nargs=-1, metavar="[KEY=VALUE ...]", shell_complete=words_of("ab"))
@click.option("--profile", "profiles", multiple=True, metavar="FILE",
              help="Of commbench tune. One: against none. Two: the first against the second.")  # fmt: skip
@click.option("--reductions", is_flag=True, help="Sums go by the profiles too, which add in another order.")
@click.option("--metric", default="", metavar="REGEX",
              help="Compare the number in its group, in the output; or step or wall, which are times.")  # fmt: skip
@allow_env("a profile")
@trusted_files()
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN",
              help="Go on with one that was stopped, or that has spent its budget.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, metavar="DIR",
              help="Parent of run folders.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table", show_default=True,
              help="Of what is printed on stdout; json: the answer, as in ab.json.")  # fmt: skip
@click.option("--no-plots", is_flag=True, help="Draw nothing at the end.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
def ab(words: tuple[str, ...], program: tuple[str, ...] | None, **options: Any) -> int:
    """Launch a program under two settings by turns, and say which is better, with an interval.

    \b
    commbench ab --profile p.json -- torchrun --nproc-per-node=8 train.py
    commbench ab env.NCCL_ALGO=Ring,Tree --metric 'step took ([0-9.]+) ms' -- torchrun train.py
    commbench ab rounds=10 -- python old.py ::: python new.py
    commbench ab fabric=emulated nodes=2 ranks_per_node=2 link=100mbit --profile p.json -- torchrun train.py
    """
    from commbench.commands import ab as command

    return command.run(words, program, **options)


@click.command(
    cls=_ProgramWithKeys,
    keys="commbench.sweep.foreign_keys",
    short_help="What any torch program sends, and how long it waits: a trace.",
    epilog="Exit codes: those of the program, 2 where nothing could be recorded, 130 interrupted.",
)
@click.argument("words", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--import", "reads_files", is_flag=True,
              help="Start nothing: read FILE..., which torch.profiler or ExecutionTraceObserver has written, one of "
              "each rank (.json, .json.gz). nodes= and ranks_per_node= say what they do not know.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="TRACE",
              help="A new folder, which sweep and tune take; default: one in results/. Ranks on other hosts have to "
              "see it.")  # fmt: skip
@click.option("--anonymous", is_flag=True, help="Leave out hosts, users, paths and the command.")
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table", show_default=True,
              help="Of stdout; json: an exchange a line, and what the program says on stderr.")  # fmt: skip
@click.option("--no-plots", is_flag=True, help="Draw nothing at the end.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors, and what the program says.")
def record(words: tuple[str, ...], program: tuple[str, ...] | None, **options: Any) -> int:
    """Run a torch program as it is, and say what it sends, from which line, and how long it waits.

    \b
    commbench record --out trace -- torchrun --nproc-per-node=8 train.py
    commbench record --out trace fabric=emulated nodes=2 ranks_per_node=2 link=1gbit -- torchrun train.py
    commbench record --import profiles/*.pt.trace.json.gz --out trace
    commbench tune trace budget=10m --out p.json
    """
    from commbench.commands import record as command

    return command.run(
        command.RecordRequest(
            words=words,
            program=program,
            out=options["out"],
            format=options["format_"],
            anonymous=options["anonymous"],
            plots=not options["no_plots"],
            quiet=options["quiet"],
            reads_files=options["reads_files"],
        )
    )


COMMANDS = (ab, record)
