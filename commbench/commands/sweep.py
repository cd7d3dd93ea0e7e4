"""`commbench sweep`: from the words on the command line to a finished run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commbench import transports
from commbench.console import Console
from commbench.errors import EXIT_OK, storage
from commbench.launch import placement
from commbench.output import grid, table
from commbench.rank_info import detect
from commbench.sweep import local_gpus
from commbench.sweep.prepare import (
    SweepRequest,
    check_fabrics,
    choose_launchers,
    configure,
    create,
    expand,
    layout_of,
    note_declared,
    refuse_code,
    show_config,
    show_plan,
    show_script,
    takes_parts,
)
from commbench.sweep.resume import resume
from commbench.sweep.session import measure, of_run

if TYPE_CHECKING:
    import pandas as pd


def run(request: SweepRequest) -> int:
    """Return the exit code: 0 fine, 1 a case failed, 130 interrupted. Raises `CommbenchError` before a start."""
    grid.check(request.columns, [column.name for column in table.columns([], {})])
    rank = detect(os.environ)
    if rank is not None and not (request.dry_run or request.show_config):
        from commbench.sweep import join

        return join.run(request, rank, join.of_sweep(_draw))
    if rank is not None and rank.rank != 0:  # of a plan that all ranks could show, one shows it
        return EXIT_OK
    console = Console(quiet=request.quiet, verbose=request.verbose)
    if request.resume is not None:
        with storage(request.resume, f"make room, then go on with: commbench sweep --resume {request.resume}"):
            folder, sweep = resume(request, console)
        return measure(request, folder, sweep, console, _draw)
    recipe, configs = configure(request.words, layout_of(rank) if rank else None, with_parts=takes_parts(request))
    refuse_code(request, configs)
    if request.show_config:
        sys.stdout.write(show_config(configs))
        return EXIT_OK
    if request.launcher == "print":
        planned = expand(configs)
        check_fabrics(planned, dict.fromkeys(transports.TABLE, "print"))
        show_script(request, planned)
        return EXIT_OK
    launchers, configs = choose_launchers(request, configs, console)
    if note := local_gpus.unused(configs):
        console.note(note)
    possible = local_gpus.check(check_fabrics(expand(configs), launchers), launchers)
    planned = placement.check(possible, launchers, console.note)
    if request.dry_run:
        show_plan(request, planned, launchers)
        return EXIT_OK
    folder = create(request, recipe, configs, planned, launchers)
    note_declared(planned, launchers, console)
    return measure(request, folder, of_run(request, folder, planned, console), console, _draw)


def _draw(frame: pd.DataFrame, meta: Mapping[str, Any], target: Path) -> list[Path]:
    from commbench import plots

    return plots.draw(frame, meta, target)
