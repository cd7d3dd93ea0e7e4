"""`commbench ab`: what a profile or a setting is worth in the step time of any program."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from commbench.ab import run as comparison
from commbench.ab.plan import ProgramRequest
from commbench.console import Console
from commbench.errors import UsageError
from commbench.rank_info import detect
from commbench.train.progress import write


def run(
    words: Sequence[str],
    program: Sequence[str] | None,
    *,
    profiles: Sequence[str],
    reductions: bool,
    metric: str,
    resume: Path | None,
    out: Path,
    format_: str,
    no_plots: bool,
    allow_env: Sequence[str],
    quiet: bool,
) -> int:
    """Return the exit code: 0 there is an answer, 1 the baseline fails, 130 interrupted. Raises `CommbenchError`."""
    if detect(os.environ) is not None:
        raise UsageError(
            "commbench ab starts launches of its own, and a launcher has started it as a rank",
            hint="put it above the launcher: commbench ab .. -- torchrun train.py",
        )
    request = ProgramRequest(
        words=tuple(words), profiles=tuple(profiles), metric=metric, out=out, format=format_, quiet=quiet,
        allow_env=tuple(allow_env), reductions=reductions,
        program=None if program is None else tuple(program),
    )  # fmt: skip
    its = comparison.create(request) if resume is None else comparison.resume(resume, request)
    try:
        return its.run()
    finally:
        if its.launches or its.about.get("stopped"):
            write("\n".join(its.lines()))
        if its.launches and not no_plots:
            _draw(its, Console(quiet=quiet))


def _draw(its: comparison.ProgramComparison, console: Console) -> None:
    from commbench.plots.ab import draw_programs

    try:
        for path in draw_programs(its.launches, its.about, its.folder / "plots"):
            console.note(f"plot: {path}")
    except (OSError, ValueError) as error:
        console.note(f"no plot: {error}")
