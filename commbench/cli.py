"""The command line. Imports nothing heavy: each command loads what it needs when it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from commbench import __version__
from commbench.commands import checking, completing, ending, finding, planning, programs, reporting
from commbench.commands.completing import words_of
from commbench.commands.options import (
    SHORT,
    FiniteRange,
    WithKeys,
    WithProgram,
    allow_env,
    columns_option,
    measuring_options,
    request,
    shorts,
    table_format,
    training_options,
    training_request,
    trusted_files,
    yardstick_options,
)
from commbench.errors import UsageError

# Those of commbench.output.writers, which is not imported for --help.
_FORMATS = ("table", "markdown", "json", "csv", "nccl-tests")
_EXPORTS = ("json", "env", "nccl-conf", "nccl-tuner", "mpiexec", "srun", "torchrun")
_LAUNCHERS = ("local", "torchrun", "mpiexec", "slurm", "print")
_AB = "train ab"


class _Commands(click.Group):
    """`train ab` is a command of two words."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:2] == _AB.split():
            return _AB, self.commands[_AB], args[2:]
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version", prog_name="commbench")
def cli() -> None:
    """Measure AllToAll honestly on your machines, and draw what you measured.

    \b
    commbench sweep                     measure with the recipe `quick`: any machine, about a minute
    commbench check                     is it healthy? one verdict, with names and evidence
    commbench sweep quick dtype=bf16    settings are KEY=VALUE; lists are axes: dtype=fp32,bf16
    commbench tune quick budget=5m      find what is provably better than the default; write a profile
    commbench plot results/latest       draw a run again
    commbench stragglers results/latest slow ranks and links; needs commbench sweep pairs
    commbench export p.json --format env   a tuned profile for other programs; exec runs one under it
    commbench train tiny                train a Mixture-of-Experts language model, with a profile or without
    commbench train ab tiny candidate=p.json   what the profile is worth there, launch by launch
    commbench plan qwen3-30b-a3b gpu=h100 ..   which parallel strategy, by how much, how sure
    commbench record --out TRACE -- torchrun train.py   what any program sends, and how long it waits for it
    commbench ab --profile p.json -- torchrun train.py   what it is worth in any other program
    commbench doctor                    what would spoil a measurement here, and what to do about it
    commbench topo                      GPUs, network cards and NUMA nodes, and what is near what
    commbench advise tokens=4096 ..     what a Mixture-of-Experts layer sends, and what to try
    commbench prove ./my.py:Mine        is an algorithm of yours right, and does it send what it declares?
    commbench recipes                   what is ready to run; keys: every setting; explain: what a word means
    """


@cli.command(
    cls=WithKeys,
    keys="commbench.sweep.keys",
    short_help="Measure; print a table; draw plots.",
    epilog="Exit codes: 0 fine, 1 a case failed, 2 usage or environment, 130 interrupted.",
)
@click.argument("words", nargs=-1, metavar="[RECIPE] [KEY=VALUE ...]", shell_complete=words_of("sweep"))
@shorts(*SHORT)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, metavar="DIR",
              help="Parent of run folders.")  # fmt: skip
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that was stopped.")
@click.option("--retry-failed", is_flag=True, help="With --resume: measure failed cases again.")
@click.option("--launcher", type=click.Choice(_LAUNCHERS), help="Starts the ranks; default: local, for MPI mpiexec.")
@click.option("--format", "format_", type=click.Choice(_FORMATS), default="table", show_default=True,
              help="Of what is printed on stdout.")  # fmt: skip
@measuring_options
@allow_env("a recipe, or from the run to go on with,")
@trusted_files()
def sweep(words: tuple[str, ...], **options: Any) -> int:
    """Measure collectives over sizes and algorithms, print a table, and draw plots.

    RECIPE is a name (quick, alltoall) or a YAML file; without it, `quick`. The keys are listed below.

    \b
    commbench sweep quick algorithm=direct,bruck -b 1K -e 64K
    commbench sweep alltoall dtype=bf16 mode=isolated,pipelined
    commbench sweep quick --format json > rows.jsonl
    """
    from commbench.rank_info import detect

    if detect(os.environ):  # a rank has as many threads as other launchers give, said before numpy is loaded
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    from commbench.commands import sweep as command

    if options["retry_failed"] and options["resume"] is None:
        raise UsageError("--retry-failed needs a run to go on with", hint="it goes with --resume RUN")
    return command.run(request(words, options, **{name: options[name] for name in ("out", "resume", "retry_failed")}))


@cli.command(
    short_help="Find what is provably better than the default; write a profile.",
    epilog="Exit codes: 0 there is a profile, 2 usage or environment, 130 interrupted.",
)
@click.argument("words", nargs=-1, metavar="[RECIPE] [KEY=VALUE ...]", shell_complete=words_of("tune"))
@shorts("sizes.min", "sizes.max", "sizes.factor", "dtype", "ranks_per_node")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The profile; default: profile.json beside the samples.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True, metavar="DIR",
              help="Parent of the folder with the samples.")  # fmt: skip
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a stopped tuning.")
@click.option("--launcher", type=click.Choice(_LAUNCHERS[:-1]),
              help="Starts the ranks; default: local, for MPI mpiexec.")  # fmt: skip
@table_format(json_is="a choice a line")
@measuring_options
@allow_env("a recipe")
@trusted_files()
def tune(words: tuple[str, ...], **options: Any) -> int:
    """Search algorithms and settings, confirm the best in fresh launches, and write a profile.

    Keys are those of `commbench sweep`; what is not set is searched: every algorithm, its parameters, the kinds of
    buffers. env.NAME=unset,a,b and binding=none,pci are searched too, the first of each is the default. budget=10m is
    the time for all of it, gain=0.03 the least gain that is worth a change.

    \b
    commbench tune quick budget=5m --out profile.json
    commbench tune gpu env.NCCL_MIN_P2P_NCHANNELS=unset,8,32 budget=20m --out profile.json
    """
    from commbench.commands import tune as command

    return command.run(request(words, options, out=options["results"], resume=options["resume"]), options["out"])


@cli.command(short_help="Draw the plots of runs, of sweeps or of trainings.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN|FILE...")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to; default: plots/ in the run, or here."
)
@yardstick_options
def plot(runs: tuple[Path, ...], out: Path | None, **told: Any) -> int:
    """Draw bandwidth and time against size; of trainings loss, throughput and the parts of a step. PNG and SVG.

    With several runs, equal settings share a figure and each line names its run. A file of nccl-tests, rccl-tests, OSU
    or IMB is drawn beside them, in the figures of the same collective and number of ranks. Files alone have figures of
    their own, and a table that says how near they come to what their links allow.

    \b
    commbench plot alltoall_perf.log --link-rate inter=8x400gbit
    """
    from commbench.commands.plot import run

    return run(runs, out, **told)


@cli.command(
    short_help="Two runs, case by case: has anything become slower?",
    epilog="Exit codes: 0 nothing regressed, 1 something did, 2 usage, or other machines.",
)
@click.argument("before", type=click.Path(path_type=Path), metavar="RUN_A")
@click.argument("after", type=click.Path(path_type=Path), metavar="RUN_B")
@click.option("--threshold", type=FiniteRange(0, 10), default=0.05, show_default=True, metavar="PART",
              help="A regression is slower for certain, and by more than this.")  # fmt: skip
@click.option("--allow-mismatch", is_flag=True, help="Compare runs of different machines.")
@table_format(json_is="a case a line")
@columns_option
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the ratios: .png or .svg.")
@yardstick_options
def compare(before: Path, after: Path, **options: Any) -> int:
    """Ratio of times, RUN_A over RUN_B, of every case that both have, with its 95 % interval.

    Better and worse are intervals that exclude 1. Either may be a file of nccl-tests or of OSU; those have no
    intervals.

    \b
    commbench compare results/20260301-before results/latest
    commbench compare results/latest nccl-tests.txt --plot ratio.png
    """
    from commbench.commands.compare import run

    return run(before, after, **options)


@cli.command(
    short_help="Name slow ranks and slow links.",
    epilog="Exit codes: 0 nothing stands out, 1 something does, 2 usage.",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--effect", type=FiniteRange(1, 1e6, min_open=True), default=1.3, show_default=True, metavar="X",
              help="How many times slower counts as slow.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True,
              help="Of what is printed on stdout.")  # fmt: skip
def stragglers(runs: tuple[Path, ...], effect: float, format_: str) -> int:
    """Look for ranks and links that are slower than the others, in runs of `commbench sweep pairs` or any others.

    A slow rank is slow with ranks of its own node too; a node's slow link shows only on messages that cross it.
    Launches of several runs of the same set-up are taken together.
    """
    from commbench.commands.stragglers import run

    return run(runs, format_, effect)


@cli.command(short_help="What messages and bytes cost, fitted to runs.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the model here as well, as JSON.")
@table_format(json_is="one object")
@columns_option
def model(runs: tuple[Path, ...], out: Path | None, format_: str, columns: str) -> int:
    """Fit what a step, a message and a byte cost on each class of link, and set every case beside its prediction.

    Runs of `algorithm=direct` and of `collective=pairs` at several sizes are enough. The formulas are in
    docs/reference/model.md.
    """
    from commbench.commands.model import run

    return run(runs, format_, out, columns)


@cli.command(
    short_help="A profile for other programs: env, nccl-conf, launchers, ...",
    epilog="Exit codes: 0 fine, 2 no usable profile, or it cannot be said in that format.",
)
@click.argument("profile", type=click.Path(path_type=Path), metavar="PROFILE")
@click.option("--format", "format_", type=click.Choice(_EXPORTS), required=True, help="Of what is written.")
@click.option("--scope", default="", metavar="ID", help="One of the profile's scopes; needed where it has several.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to; default: stdout.")
@allow_env("the profile")
@trusted_files()
def export(profile: Path, format_: str, scope: str, out: Path | None, allow_env: tuple[str, ...]) -> int:
    """Write what a tuned profile says in the words of another program.

    \b
    commbench export p.json --format env > p.env          # . ./p.env, where ranks are started
    commbench export p.json --format nccl-conf --out nccl.conf
    commbench export p.json --format srun --out start.sh  # sh start.sh python train.py
    """
    from commbench.commands.export import run

    return run(profile, format_=format_, scope=scope, out=out, allow_env=allow_env)


@cli.command(
    "exec",
    cls=WithProgram,
    short_help="Run a program as a profile asks: settings, CPUs, exchanges.",
    epilog="Exit codes: those of the program, 2 where it cannot be started so.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--profile", required=True, type=click.Path(path_type=Path), metavar="FILE", help="As tune wrote it.")
@click.option("--scope", default="", metavar="ID", help="One of the profile's scopes; needed where it has several.")
@click.option("--dry-run", is_flag=True, help="Print the settings and the rank's place, and start nothing.")
@click.option("--reductions", is_flag=True, help="Sums go by the profile too, which add in another order.")
@allow_env("the profile")
@trusted_files()
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE ...]")
def exec_(profile: Path, scope: str, words: tuple[str, ...], program: tuple[str, ...] | None, **options: Any) -> int:
    """Become PROGRAM, in the environment, on the CPUs and with the exchanges that the profile asks for.

    Above a launcher of torch programs each rank binds itself where it imports torch; under one, exec does it, for any
    program. The exchanges of torch programs go by the profile either way, with no line changed.

    \b
    commbench exec --profile p.json -- torchrun --nproc-per-node=8 train.py
    mpiexec -n 8 commbench exec --profile p.json -- ./program
    commbench exec --profile p.json fabric=emulated nodes=2 ranks_per_node=2 link=100mbit -- torchrun train.py
    """
    from commbench.commands.exec import run

    if words and (program is None or "=" not in words[0]):  # no `--`, or one of the program's own
        words, program = (), (*words, *(() if program is None else ("--", *program)))
    if not program:
        raise UsageError("there is no PROGRAM to run", hint="commbench exec --profile p.json -- PROGRAM ARGUMENTS")
    return run(profile, program, wanted=scope, words=words, **options)


@cli.command(
    cls=WithKeys,
    keys="commbench.train.config",
    short_help="Train a Mixture-of-Experts language model, with a profile or without.",
    epilog="Exit codes: 0 trained to the end, 1 it broke, 2 usage or environment, 130 stopped and saved.",
)
@click.argument("words", nargs=-1, metavar="[RECIPE] [KEY=VALUE ...]", shell_complete=words_of("train"))
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on from its last checkpoint.")
@click.option("--no-plots", is_flag=True, help="Draw nothing at the end.")
@training_options(json_is="a step a line")
def train(words: tuple[str, ...], **options: Any) -> int:
    """Train a small language model on text, over ranks, and write metrics and checkpoints into a run folder.

    RECIPE is a name (tiny, small, ...) or a YAML file; without it, `tiny`. The keys are listed below.

    \b
    commbench train tiny
    commbench train tiny profile=p.json schedule=pipelined chunks=2 --format json > metrics.jsonl
    commbench train --resume results/latest ranks_per_node=2
    commbench train ab tiny candidate=p.json    # a command of its own: two settings side by side
    torchrun --nproc-per-node=8 --no-python commbench train small transport=nccl
    """
    from commbench.commands import train as command

    resume, plots = options["resume"], not options["no_plots"]
    return command.run(training_request(words, options, resume=resume, plots=plots))


@cli.command(
    _AB,
    short_help="What a profile or a setting is worth end to end.",
    epilog="Exit codes: 0 there is an answer, 1 a launch broke, 2 usage or environment, 130 interrupted.",
)
@click.argument("words", nargs=-1, metavar="[RECIPE] [KEY=VALUE ...]", shell_complete=words_of(_AB))
@training_options(json_is="the answer, as in ab.json")
def train_ab(words: tuple[str, ...], **options: Any) -> int:
    """Train under two settings, `baseline` and `candidate`, by turns in fresh launches, and say what differs.

    \b
    baseline=FILE candidate=FILE     profiles; left out, or `default`: none
    baseline.KEY=V candidate.KEY=V   any key of one arm that only changes time
    rounds=10 steps=20               launches of each, and steps in each
    budget=30m                       in place of rounds: until it is known which is faster
    model=FILE                       costs of the links, to predict what no profile knows
    KEY=V                            any key of `commbench train`, for both

    \b
    commbench train ab tiny candidate=p.json
    commbench train ab tiny candidate.schedule=pipelined candidate.chunks=2 rounds=3
    """
    from commbench.commands import train_ab as command

    return command.run(training_request(words, options))


@cli.command(
    short_help="What this machine has, and what would spoil a measurement.",
    epilog="Exit codes: 0 fine, 1 a check failed.",
)
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table", show_default=True,
              help="Of what is printed on stdout.")  # fmt: skip
def doctor(format_: str) -> int:
    """Look at software, MPI, launchers, GPUs, network, CPUs, memory, files and environment; change nothing."""
    from commbench.commands.doctor import run

    return run(format_)


@cli.command(short_help="GPUs, network cards, NUMA nodes, and what is near what.")
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True,
              help="Of what is printed on stdout.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the machine: FILE.png or FILE.svg.")
@click.option("--record", type=click.Path(path_type=Path), metavar="DIR",
              help="Write the machine down in a new folder, to read it elsewhere.")  # fmt: skip
@click.option("--root", type=click.Path(path_type=Path), default=Path("/"), metavar="DIR",
              help="Read a machine that was recorded, not this one; or a file: NCCL's topology XML, the text of "
                   "nvidia-smi topo -m.")  # fmt: skip
def topo(format_: str, plot: Path | None, record: Path | None, root: Path) -> int:
    """Show how GPUs, network cards and NUMA nodes of this machine hang together, as nvidia-smi topo -m does.

    \b
    commbench topo --plot machine.png
    commbench topo --record my-machine          # for a bug report: small files, no addresses
    commbench topo --root my-machine            # the same answer, anywhere
    commbench topo --root topo.xml              # as NCCL_TOPO_DUMP_FILE=topo.xml wrote it
    """
    from commbench.commands.topo import run

    return run(format_, root, plot, record)


for command in (*checking.COMMANDS, *programs.COMMANDS, *planning.COMMANDS, *finding.COMMANDS, *reporting.COMMANDS):
    cli.add_command(command)


def main() -> None:
    """Run the command line: every error is one `error:` line, one `hint:` line, and an exit code."""
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    completing.prepare()
    return ending.run(cli, arguments)


if __name__ == "__main__":
    main()
