"""Rows of several runs, and files of other programs beside them, as one table to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from commbench import formats
from commbench.analysis import bounds, pair_matrices, ratios, so_far
from commbench.analysis.bounds import Rates, Told
from commbench.analysis.so_far import RowsSoFar
from commbench.errors import UsageError
from commbench.output import foreign, parquet
from commbench.records import Status
from commbench.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """rows: of all sources. about: the first run's run.json, with `pairs`, the matrices of all runs, and `partial`."""

    rows: pd.DataFrame
    about: dict[str, Any]
    sources: list[str]  # ids of runs, then paths of files
    folder: Path | None  # of the first run; None where there are files alone


def combine(paths: Sequence[Path], told: Told, figure_keys: Sequence[str], note: Callable[[str], None]) -> Combined:
    """Read run folders and files. Raises `UsageError`.

    told: of those files that do not say it. figure_keys: columns of which one figure has one value. note: is given
    what of the files no figure will show, and why they have no bound. Files without a run have figures of their own.
    """
    files = [path for path in paths if path.is_file()]
    folders = [RunFolder.open(path) for path in paths if path not in files]
    logs = {path: formats.read(path, told.ranks, told.nodes) for path in files}
    for path, log in logs.items():
        if log.note:
            note(f"{path}: {log.note}")
        if reason := bounds.missing(log.results, told.rates):
            note(f"{path}: no bound: {reason}")
    if not folders:
        frames = [foreign.alone(log.results, path, told.rates) for path, log in logs.items()]
        return Combined(
            rows=pd.concat(frames, ignore_index=True),
            about=foreign.about(files),
            sources=[str(path) for path in files],
            folder=None,
        )
    known = [so_far.of_run(folder) for folder in folders]
    ours = _frame(folders, known, told.rates)
    frames = [ours]
    for path, log in logs.items():
        beside, left_out = foreign.beside(log.results, path.name, ours, figure_keys, told.rates)
        for what in left_out:
            note(f"{path}: no figure of these runs compares with {what}")
        frames.append(beside)
    if files and not any(len(frame) for frame in frames[1:]):
        raise UsageError("nothing in these files compares with the runs", hint="the same collective on as many ranks")
    about = folders[0].read_json("run.json")
    machines = {folder.read_json("run.json")["machine_text"] for folder in folders}
    about["machine_text"] = " / ".join(sorted(machines))
    about["pairs"] = pair_matrices.of_runs(folders)
    about["partial"] = _partial(folders, known)
    return Combined(
        rows=pd.concat(frames, ignore_index=True),
        about=about,
        sources=[*(folder.run_id for folder in folders), *map(str, files)],
        folder=folders[0].path,
    )


def _partial(folders: Sequence[RunFolder], known: Sequence[RowsSoFar]) -> str:
    """Return how much there is of runs that are not finished; "" where all are."""
    name = len(folders) > 1
    said = [
        f"{folder.run_id}: {one.partial}" if name else one.partial
        for folder, one in zip(folders, known, strict=True)
        if one.partial
    ]
    return "; ".join(said)


def _frame(folders: Sequence[RunFolder], known: Sequence[RowsSoFar], rates: Rates) -> pd.DataFrame:
    """Return the rows of all runs; of several, each label names its run. Raises `UsageError` where none has numbers."""
    rows = [list(bounds.of_rows(folder, one.rows, rates).values()) for folder, one in zip(folders, known, strict=True)]
    if not any(row.status is Status.OK for of_run in rows for row in of_run):
        raise UsageError("these runs have no case with numbers", hint="resume them: commbench sweep --resume RUN")
    frames = [
        parquet.frame(of_run, folder.run_id, ratios.of_run(folder, of_run))
        for of_run, folder in zip(rows, folders, strict=True)
    ]
    if len(frames) > 1:
        for frame in frames:
            frame["label"] = frame["label"] + " (" + frame["run"] + ")"
    return pd.concat(frames, ignore_index=True)
