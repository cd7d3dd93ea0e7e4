"""`commbench train ab`: what a setting or a profile is worth end to end."""

from __future__ import annotations

import json
import os
import sys

from commbench.console import Console
from commbench.errors import EXIT_OK, UsageError
from commbench.rank_info import detect
from commbench.train import ab_arms, ab_run, launch


def run(request: launch.TrainRequest) -> int:
    """Return the exit code: 0 there is an answer, 1 a launch broke, 130 interrupted. Raises `CommbenchError`."""
    if detect(os.environ) is not None:
        raise UsageError(
            "commbench train ab starts launches of its own, and a launcher has started it as a rank",
            hint="start it without the launcher",
        )
    arms, limits, costs = ab_arms.arms_of(request.words)
    if request.show_config:
        sys.stdout.write("".join(f"{arm.name}: {json.dumps(arm.settings())}\n" for arm in arms.values()))
        return EXIT_OK
    comparison = ab_run.create(request, arms, limits, costs)
    try:
        return comparison.run()
    finally:  # what was measured until a launch was refused is drawn too
        if comparison.launches:
            _draw(comparison, Console(quiet=request.quiet))


def _draw(comparison: ab_run.Comparison, console: Console) -> None:
    from commbench.plots.ab import draw

    target = comparison.folder / "plots"
    try:
        for path in draw(comparison.launches, comparison.outcome, comparison.about, comparison.title, target):
            console.note(f"plot: {path}")
    except (OSError, ValueError) as error:
        console.note(f"no plot: {error}")
