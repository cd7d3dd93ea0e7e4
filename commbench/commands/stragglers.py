"""`commbench stragglers`: slow ranks and slow links of finished runs, with evidence."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from commbench.analysis import so_far
from commbench.analysis.stragglers.examine import examine, without_repeats
from commbench.console import stderr_console
from commbench.output import stragglers
from commbench.output.answer.slow import answer
from commbench.run_folder import RunFolder

EXIT_NOTHING, EXIT_NAMED = 0, 1


def run(paths: Sequence[Path], format_: str, effect: float) -> int:
    """Return the exit code: 1 where something stands out. Raises `UsageError` for runs that cannot be judged."""
    folders = [RunFolder.open(path) for path in paths]
    parts = examine(folders, effect)
    named = without_repeats(parts)
    partial = so_far.partial_runs(folders)
    found = answer(parts, named, effect, folders[0].read_json("run.json")).but(partial)
    if format_ == "json":
        line = stragglers.as_json(parts, named, effect) | found.as_dict()
        sys.stdout.write(json.dumps(line) + "\n")
    else:
        sys.stdout.write(stragglers.text(parts, named, effect) + "\n".join(found.lines("")) + "\n")
    for text in partial:
        stderr_console().print(text)
    for note in dict.fromkeys(note for part in parts for note in part.notes):
        stderr_console().print(f"note: {note}")
    return EXIT_NAMED if named else EXIT_NOTHING
