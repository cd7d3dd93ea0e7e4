"""`commbench plot`: draw finished runs again, or several in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from commbench.console import stderr_console
from commbench.errors import UsageError
from commbench.records import Status, digest
from commbench.store import RunFolder


def run(runs: Sequence[Path], out: Path | None) -> int:
    folders = [RunFolder.open(path) for path in runs]
    rows = [list(folder.rows().values()) for folder in folders]
    if not any(row.status is Status.OK for of_run in rows for row in of_run):
        raise UsageError(
            "these runs have no finished case with numbers", hint="resume them: commbench sweep --resume RUN"
        )
    import pandas as pd

    from commbench import plots, tables

    frames = [tables.frame(of_run, folder.run_id) for of_run, folder in zip(rows, folders, strict=True)]
    if len(frames) > 1:
        for frame in frames:
            frame["label"] = frame["label"] + " (" + frame["run"] + ")"
    meta = folders[0].read_json("run.json")
    machines = {folder.read_json("run.json")["machine_text"] for folder in folders}
    meta["machine_text"] = " / ".join(sorted(machines))
    target = out or folders[0].path / "plots"
    # A figure of several runs never takes the place of the first one's own.
    prefix = f"compare-{digest([folder.run_id for folder in folders])[:6]}-" if len(folders) > 1 else ""
    try:
        paths = plots.draw(pd.concat(frames, ignore_index=True), meta, target, prefix=prefix)
    except OSError as error:
        raise UsageError(
            f"cannot write {str(target)!r}: {error.strerror}", hint="choose a folder of yours: --out DIR"
        ) from error
    for path in paths:
        stderr_console().print(f"plot: {path}")
    return 0
