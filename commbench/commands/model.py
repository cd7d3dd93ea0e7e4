"""`commbench model`: what messages and bytes cost, fitted to finished runs, and what that says of their cases."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from commbench import cost_model
from commbench.analysis import so_far
from commbench.console import stderr_console
from commbench.cost_model import comparison
from commbench.errors import UsageError
from commbench.files import write_named
from commbench.output import cost_table, grid
from commbench.output.answer.fitted import answer
from commbench.output.grid import TableStyle
from commbench.run_folder import RunFolder


def run(paths: Sequence[Path], format_: str, out: Path | None, columns: str = "") -> int:
    """Print the model and write it to `out`; return 0. Raises `UsageError` for runs that no model can be fitted to."""
    folders = [RunFolder.open(path) for path in paths]
    look = TableStyle(columns=columns, markdown=format_ == "markdown")
    grid.check(columns, [column.name for column in cost_table.columns()])
    observations = [item for folder in folders for item in cost_model.observe(folder)]
    fitted = cost_model.fit(observations)
    if out is not None:
        _write(out, json.dumps(fitted.as_dict()) + "\n")
    partial = so_far.partial_runs(folders)
    found = answer(fitted, [str(path) for path in paths], None if out is None else str(out)).but(partial)
    if format_ == "json":
        sys.stdout.write(json.dumps(comparison.as_json(fitted, observations) | found.as_dict()) + "\n")
    else:
        sys.stdout.write(cost_table.table(fitted, observations, look) + "\n".join(found.lines()) + "\n")
    for text in partial:
        stderr_console().print(text, markup=False)
    for note in fitted.notes:
        stderr_console().print(f"note: {note}", markup=False)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        write_named(path, text)
    except OSError as error:
        raise UsageError(
            f"cannot write {str(path)!r}: {error.strerror}", hint="--out FILE, in a folder that is there and yours"
        ) from error
