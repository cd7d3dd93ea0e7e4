"""`commbench plot`: draw finished runs again, several in one figure, and results of other programs beside them.

Runs are sweeps, or trainings, or one A/B of a training; they do not mix.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from commbench import formats
from commbench.analysis import pair_matrices
from commbench.console import stderr_console
from commbench.errors import UsageError
from commbench.output import foreign
from commbench.records import Status
from commbench.run_folder import RunFolder, read_lines
from commbench.serialise import digest
from commbench.train import ab, results


def run(paths: Sequence[Path], out: Path | None, ranks: int | None = None) -> int:
    """`paths` are run folders and files of other programs; `ranks` of those files that do not say it."""
    if any(_is_ab(path) for path in paths):
        return _ab(paths, out)
    if any(results.is_one(path) for path in paths):
        return _trainings(paths, out)
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

    from commbench import plots
    from commbench.analysis import ratios
    from commbench.output import parquet
    from commbench.plots.settings import FIGURE_KEYS

    frames = [
        parquet.frame(of_run, folder.run_id, ratios.of_run(folder, of_run))
        for of_run, folder in zip(rows, folders, strict=True)
    ]
    if len(frames) > 1:
        for frame in frames:
            frame["label"] = frame["label"] + " (" + frame["run"] + ")"
    ours = pd.concat(frames, ignore_index=True)
    drawn = [ours]
    for path, listed in others:
        beside, left_out = foreign.beside(listed, path.name, ours, FIGURE_KEYS)
        for what in left_out:
            stderr_console().print(f"{path}: no figure of these runs compares with {what}")
        drawn.append(beside)
    if files and not any(len(frame) for frame in drawn[1:]):
        raise UsageError("nothing in these files compares with the runs", hint="the same collective on as many ranks")
    meta = folders[0].read_json("run.json")
    machines = {folder.read_json("run.json")["machine_text"] for folder in folders}
    meta["machine_text"] = " / ".join(sorted(machines))
    meta["pairs"] = pair_matrices.of_runs(folders)
    target = out or folders[0].path / "plots"
    # A figure of several sources never takes the place of the first one's own.
    sources = [*(folder.run_id for folder in folders), *map(str, files)]
    prefix = f"compare-{digest(sources)[:6]}-" if len(sources) > 1 else ""
    try:
        paths = plots.draw(pd.concat(drawn, ignore_index=True), meta, target, prefix=prefix)
        if meta["pairs"]:
            paths += pair_matrices.write(meta["pairs"], target, prefix)
    except OSError as error:
        raise _unwritable(target, error) from error
    return _told(paths)


def trainings(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Draw run folders of `commbench train`, several in one figure each; the PNG files."""
    found = [results.read(path) for path in paths]
    target = out or paths[0].resolve() / "plots"
    prefix = f"compare-{digest([one.run_id for one in found])[:6]}-" if len(found) > 1 else ""
    from commbench.plots import training

    try:
        return training.draw(found, target, prefix=prefix)
    except OSError as error:
        raise _unwritable(target, error) from error


def _trainings(paths: Sequence[Path], out: Path | None) -> int:
    for path in paths:
        if not results.is_one(path):
            raise UsageError(f"{str(path)!r} is no training, and others here are",
                             hint="one call for trainings, another one for sweeps and files")  # fmt: skip
    return _told(trainings(paths, out))


def _is_ab(path: Path) -> bool:
    return (path / "ab.json").is_file()


def _ab(paths: Sequence[Path], out: Path | None) -> int:
    """Of one folder of `commbench train ab`."""
    if len(paths) > 1:
        raise UsageError(f"{len(paths)} folders, one of them of commbench train ab", hint="it is drawn alone")
    about = RunFolder(paths[0]).read_json("ab.json")
    lines = read_lines(paths[0] / "launches.jsonl", json.loads)
    try:
        launches = [ab.Launched(**{**line, "losses": tuple(line["losses"])}) for line in lines]
        names = ", ".join(results.differences([about["arms"][arm] for arm in ab.ARMS], " and "))
        about = {
            "predicted": None,
            "machine_text": "",
            "commbench_version": "",
            "started": about.get("ended", ""),
            **about,
        }
    except (KeyError, TypeError) as error:
        raise UsageError(f"{paths[0]} is of another version: {error}",
                         hint="use the commbench version that wrote it") from error  # fmt: skip
    target = out or paths[0].resolve() / "plots"
    from commbench.plots.ab import draw

    try:
        return _told(draw(launches, ab.compare(launches), about, names, target))
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write {str(target)!r}: {error.strerror}", hint="choose a folder of yours: --out DIR")


def _told(paths: Sequence[Path]) -> int:
    for path in paths:
        stderr_console().print(f"plot: {path}")
    return 0
