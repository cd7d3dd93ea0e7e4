"""`commbench report`, as the command line has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from commbench.commands.options import yardstick_options


@click.command(short_help="One page to send: the answer, pictures, tables, what ran where.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN|FILE...")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="page.html, or page.md; without it Markdown is printed.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(("html", "markdown")),
              help="Of what is written; default: what the file's name says.")  # fmt: skip
@click.option("--anonymous", is_flag=True, help="Leave out hosts, users, paths, addresses and serial numbers.")
@yardstick_options
def report(runs: tuple[Path, ...], out: Path | None, format_: str | None, anonymous: bool, **told: Any) -> int:
    """Write what runs have found as one page that opens from the disk, and can be sent: nothing in it is fetched.

    RUN is the folder of a sweep, a check, a tuning, a training or an A/B, or a trace; FILE is a profile, what
    `commbench plan --format json` printed, or a log of nccl-tests, rccl-tests, OSU or IMB. Several are one page: sweeps
    share their pictures, and so do trainings.

    \b
    commbench report results/latest --out page.html
    commbench report results/before results/after --out page.html
    commbench report results/latest                 # Markdown, for an issue
    """
    from commbench.commands.report import run

    return run(runs, out, format_, anonymous=anonymous, **told)


COMMANDS = (report,)
