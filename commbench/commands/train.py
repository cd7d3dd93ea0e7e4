"""`commbench train`: train a language model, as the parent of its ranks or as one of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from commbench.commands.plot import draw_trainings
from commbench.console import Console
from commbench.errors import EXIT_OK, CommbenchError, UsageError
from commbench.rank_info import RankInfo, detect
from commbench.train import launch, results


def run(request: launch.TrainRequest) -> int:
    """Return the exit code: 0 trained to the end, 1 it broke, 130 stopped and saved. Raises `CommbenchError`."""
    info = detect(os.environ)
    if "ab" in request.words:
        raise UsageError("ab is a command of its own", hint="commbench train ab [RECIPE] [KEY=VALUE ...]")
    if request.show_config:
        config, _ = launch.settings(request)
        if info is None or info.rank == 0:
            values = json.loads(config.to_json())
            sys.stdout.write("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
        return EXIT_OK
    code, folder = _train(request, info)
    if request.plots and folder is not None:
        _draw(folder, Console(quiet=request.quiet))
    return code


def _train(request: launch.TrainRequest, info: RankInfo | None) -> tuple[int, Path | None]:
    """Return the exit code, and the run folder where it is this process that reports."""
    if info is None:
        ended = launch.once(request)
        return ended.code, ended.folder
    from commbench.train import join

    return join.run(request, info)


def _draw(folder: Path, console: Console) -> None:
    """Draw a training that is over; it has not failed because it cannot be drawn."""
    if not results.steps(folder):
        return
    try:
        for path in draw_trainings([folder]):
            console.note(f"plot: {path}")
    except CommbenchError as error:
        console.note(f"no plots: {error}")
