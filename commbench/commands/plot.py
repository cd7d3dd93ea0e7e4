"""`commbench plot`: draw finished runs again, several in one figure, and results of other programs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from commbench import formats, matrices
from commbench.console import stderr_console
from commbench.errors import UsageError
from commbench.records import Status, digest
from commbench.store import RunFolder


def run(paths: Sequence[Path], out: Path | None, ranks: int | None = None) -> int:
    """`paths` are run folders and files of other programs; `ranks` of those files that do not say it."""
    files = [path for path in paths if path.is_file()]
    folders = [RunFolder.open(path) for path in paths if path not in files]
    if not folders:
        raise UsageError(f"{files[0]} is drawn beside a run, and none was named", hint="name one: results/latest")
    rows = [list(folder.rows().values()) for folder in folders]
    if not any(row.status is Status.OK for of_run in rows for row in of_run):
        raise UsageError(
            "these runs have no finished case with numbers", hint="resume them: commbench sweep --resume RUN"
        )
    others = [(path, formats.read(path, ranks)) for path in files]
    import pandas as pd

    from commbench import plots, ratios, tables
    from commbench.plots.settings import FIGURE_KEYS

    frames = [
        tables.frame(of_run, folder.run_id, ratios.of_run(folder, of_run))
        for of_run, folder in zip(rows, folders, strict=True)
    ]
    if len(frames) > 1:
        for frame in frames:
            frame["label"] = frame["label"] + " (" + frame["run"] + ")"
    ours = pd.concat(frames, ignore_index=True)
    drawn = [ours]
    for path, results in others:
        beside, left_out = formats.beside(results, path.name, ours, FIGURE_KEYS)
        for what in left_out:
            stderr_console().print(f"{path}: no figure of these runs compares with {what}")
        drawn.append(beside)
    if files and not any(len(frame) for frame in drawn[1:]):
        raise UsageError("nothing in these files compares with the runs", hint="the same collective on as many ranks")
    meta = folders[0].read_json("run.json")
    machines = {folder.read_json("run.json")["machine_text"] for folder in folders}
    meta["machine_text"] = " / ".join(sorted(machines))
    meta["pairs"] = matrices.of_runs(folders)
    target = out or folders[0].path / "plots"
    # A figure of several sources never takes the place of the first one's own.
    sources = [*(folder.run_id for folder in folders), *map(str, files)]
    prefix = f"compare-{digest(sources)[:6]}-" if len(sources) > 1 else ""
    try:
        paths = plots.draw(pd.concat(drawn, ignore_index=True), meta, target, prefix=prefix)
        if meta["pairs"]:
            paths += matrices.write(meta["pairs"], target, prefix)
    except OSError as error:
        raise UsageError(
            f"cannot write {str(target)!r}: {error.strerror}", hint="choose a folder of yours: --out DIR"
        ) from error
    for path in paths:
        stderr_console().print(f"plot: {path}")
    return 0
