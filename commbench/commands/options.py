"""Options that commands share, and what they become: nothing heavy is imported before a command runs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commbench.commands import nccl_tests
from commbench.errors import UsageError

if TYPE_CHECKING:
    from commbench.sweep.prepare import SweepRequest
    from commbench.train import launch

TRAINERS = ("local", "torchrun")
# Keys that have an option: its letters, what it takes, and what it is.
SHORT = {
    "sizes.min": ("-b", "--min-bytes", "SIZE", "Smallest size (sizes.min): 8, 32K, 1MiB."),
    "sizes.max": ("-e", "--max-bytes", "SIZE", "Largest size (sizes.max)."),
    "sizes.factor": ("-f", "--factor", "N", "From one size to the next (sizes.factor)."),
    "iters": ("-n", "--iters", "N", "Fixed number of samples; no adaptive stop (iters)."),
    "warmup": ("-w", "--warmup", "N", "Untimed calls before the first sample (warmup)."),
    "dtype": ("-d", "--dtype", "TYPE", "Element type (dtype): fp32, bf16, ..; float, half too."),
    "op": ("-o", "--op", "OP", "Of reductions (op): sum, prod, min, max, all."),
    "root": ("-r", "--root", "RANK", "Of broadcast (root)."),
    "ranks_per_node": ("-g", "--ranks-per-node", "N", "Ranks on each node (ranks_per_node)."),
}
_PROGRAM = "--"
_Command = Callable[..., int]


_PICTURES = (".png", ".svg")


def check_picture(path: Path | None) -> None:
    """Raise `UsageError` where the name of a picture to draw says no kind that there is."""
    if path is not None and path.suffix.lower() not in _PICTURES:
        raise UsageError(
            f"--plot {str(path)!r}: unknown kind of picture {path.suffix!r}", hint="end the name in .png or .svg"
        )


def allow_env(whose: str) -> Callable[[_Command], _Command]:
    """Return the option that lets what others may have written set variables that load code."""
    return click.option("--allow-env", multiple=True, metavar="NAME",
                        help=f"Take this variable from {whose} although it loads code; several times.")  # fmt: skip


def trusted_files() -> Callable[[_Command], _Command]:
    """Return the option that names files with algorithms; what it names is loaded before the command runs."""

    def load(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> None:
        if words:
            from commbench.algorithms import outside

            outside.hand_on(words)

    return click.option("--algorithms", multiple=True, metavar="FILE.py[:CLASS]", callback=load, expose_value=False,
                        help="Load an algorithm of yours from this file; several times.")  # fmt: skip


def yardstick_options(command: _Command) -> _Command:
    """Add what a user says of logs, and of links, for the bound."""
    for option in (
        click.option("--link-rate", multiple=True, metavar="CLASS=RATE",
                     help="For the bound: inter=8x400gbit of a node's cards, intra=450GBps of a rank; several times."),
        click.option("--nodes", type=click.IntRange(1), metavar="N", help="Nodes, of a file that does not say."),
        click.option("--ranks", type=click.IntRange(1), metavar="N", help="Ranks of an OSU file, which does not say."),
    ):  # fmt: skip
        command = option(command)
    return command


def columns_option(command: _Command) -> _Command:
    """Give a command that prints a table the option that says which columns."""
    help_ = "Columns of the table; default: those that fit, 100 characters at the most."
    return click.option("--columns", default="", metavar="all|A,B,..", help=help_)(command)


def table_format(*, json_is: str) -> Callable[[_Command], _Command]:
    """Return the option for the format of a command that prints one table, as a decorator."""
    formats = click.Choice(("table", "markdown", "json"))
    said = f"Of what is printed on stdout; json: {json_is}."
    return click.option("--format", "format_", type=formats, default="table", show_default=True, help=said)


def measuring_options(command: _Command) -> _Command:
    """Add what a sweep and a tuning have in common."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="A line on stderr for each finished case."),
        click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors."),
        click.option("--no-plots", is_flag=True, help="Draw nothing at the end."),
        click.option("--show-config", is_flag=True, help="Print every key with its value and measure nothing."),
        click.option("--dry-run", is_flag=True, help="Print what would be measured, and measure nothing."),
        columns_option,
    ):
        command = option(command)
    return command


class FiniteRange(click.FloatRange):
    """A number within limits: nan, which no comparison refuses, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return float(number)


class WithKeys(click.Command):
    """A command whose help lists the keys that its words may set."""

    def __init__(self, *args: Any, keys: str, **more: Any) -> None:
        """keys: the module that explains them, which is imported for this help alone."""
        super().__init__(*args, **more)
        self._keys = keys

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        formatter.write(importlib.import_module(self._keys).explain_keys(formatter.width))


class WithProgram(click.Command):
    """A command before somebody's program: what stands after the first `--` is the program's, word by word.

    The function gets it as `program`, None where there is no `--`. Options may stand anywhere before it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index(_PROGRAM) if _PROGRAM in args else None
        rest = super().parse_args(ctx, args if at is None else args[:at])
        ctx.params["program"] = None if at is None else tuple(args[at + 1 :])
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), f"{_PROGRAM} PROGRAM [ARGUMENTS]"]


def shorts(*keys: str) -> Callable[[_Command], _Command]:
    """Return a decorator that gives a command options for these keys, in this order."""

    def decorate(command: _Command) -> _Command:
        for key in reversed(keys):
            letter, word, metavar, text = SHORT[key]
            command = click.option(letter, word, _name(key), metavar=metavar, help=text)(command)
        return command

    return decorate


def _name(key: str) -> str:
    return key.replace(".", "_")


def request(words: Sequence[str], options: Mapping[str, Any], **more: Any) -> SweepRequest:
    """Return the request of a sweep or a tuning, whose options for keys become words."""
    from commbench.sweep.prepare import SweepRequest

    given = ((key, options.get(_name(key))) for key in SHORT)
    typed = (f"{key}={nccl_tests.key_value(key, str(value))}" for key, value in given if value is not None)
    return SweepRequest(
        words=(*words, *typed),
        dry_run=options["dry_run"],
        show_config=options["show_config"],
        launcher=options["launcher"] or "",
        allow_env=options["allow_env"],
        format=options["format_"],
        columns=options["columns"],
        plots=not options["no_plots"],
        quiet=options["quiet"],
        verbose=options["verbose"],
        **more,
    )


def training_options(*, json_is: str) -> Callable[[_Command], _Command]:
    """Return the options of one training, and of two beside each other, as a decorator."""

    def decorate(command: _Command) -> _Command:
        for option in (
            allow_env("the profile"),
            trusted_files(),
            click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors."),
            click.option("--format", "format_", type=click.Choice(("table", "json")), default="table",
                         show_default=True, help=f"Of what is printed on stdout; json: {json_is}."),
            click.option("--launcher", type=click.Choice(TRAINERS), default="local", show_default=True,
                         help="Starts the ranks."),
            click.option("--show-config", is_flag=True, help="Print every key with its value and train nothing."),
            click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
                         metavar="DIR", help="Parent of run folders."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def training_request(words: Sequence[str], options: Mapping[str, Any], **more: Any) -> launch.TrainRequest:
    from commbench.train import launch as command

    return command.TrainRequest(
        words=tuple(words),
        out=options["out"],
        show_config=options["show_config"],
        launcher=options["launcher"],
        allow_env=options["allow_env"],
        format=options["format_"],
        quiet=options["quiet"],
        **more,
    )
