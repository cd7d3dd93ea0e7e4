"""`commbench topo`: what this machine, or a recorded one, is made of, and what is near what."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from commbench.commands.options import check_picture
from commbench.console import stderr_console
from commbench.errors import UsageError
from commbench.machine import describe, foreign, sysfs
from commbench.machine.record import record as write_down


def run(format: str, root: Path, plot: Path | None = None, record: Path | None = None) -> int:
    """Print the machine; draw it to `plot` and write it down in `record` where these are given. Return 0."""
    check_picture(plot)
    console = stderr_console()
    if record is None:
        machine = foreign.read(root) if root.is_file() else sysfs.read(root)
    else:
        machine, count = write_down(root, record)
        console.print(f"recorded: {record}, {count} small files; read it with: commbench topo --root {record}")
    if format == "json":
        sys.stdout.write(json.dumps(describe.dictionary(machine)) + "\n")
    else:
        sys.stdout.write(describe.table(machine))
    sys.stdout.flush()
    if plot is not None:
        from commbench.plots.machine import draw

        try:
            draw(machine, plot)
        except OSError as error:
            raise UsageError(
                f"cannot write {str(plot)!r}: {error.strerror}", hint="choose a folder that is there, and yours"
            ) from error
        console.print(f"plot: {plot}")
    return 0
