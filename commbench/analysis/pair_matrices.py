"""Matrices: how long messages between every two ranks take, from the samples of runs that measured `pairs`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commbench import stats
from commbench.analysis import sample_files, so_far
from commbench.collectives import pairs
from commbench.files import write_atomically
from commbench.layout import Layout
from commbench.records import Case, Row, Status
from commbench.run_folder import RunFolder
from commbench.serialise import as_dict, digest
from commbench.stats import Floats
from commbench.units import gbps

COLLECTIVE = pairs.Pairs.name
_ONE_WAY = {("direction", "there"), ("direction", "back")}
_COLUMNS = (
    *("matrix", "size_bytes", "src", "dst", "src_node", "dst_node", "link"),
    *("time_us", "time_us_low", "time_us_high", "gbps", "launches"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSamples:
    """The samples of one case in one launch: samples x ranks, microseconds."""

    case: Case
    launch: tuple[str, ...]  # run and process group: after a crash, one launch has several
    time_us: Floats
    begin_us: Floats | None = None  # when each rank left the barrier, where ranks share a clock
    fabric: str = ""  # what is between the nodes, as in rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One set-up at one size. `time_us` is launches x senders x receivers, NaN where nothing was measured.

    Of a message that goes alone it is the time until both sender and receiver have done; where both send at once, until
    the receiver has. Where ranks share a clock it counts from when the later of the two has left the barrier, else
    each counts its own time. Each is the median over the launch's samples.
    """

    key: str  # the same for the same set-up and size in every run
    row: Row  # of one of its cases: what the set-up is
    layout: Layout
    time_us: Floats

    @property
    def size_bytes(self) -> int:
        return self.row.size_bytes

    @property
    def launches(self) -> int:
        return len(self.time_us)

    @property
    def median_us(self) -> Floats:
        """Return the medians over launches, senders x receivers."""
        return _median(self.time_us)

    @property
    def interval_us(self) -> tuple[Floats, Floats]:
        """Return the 95 % interval of each cell by order statistics of its launches, NaN below 6 of them."""
        low, high = np.full_like(self.time_us[0], np.nan), np.full_like(self.time_us[0], np.nan)
        for cell in np.argwhere(np.isfinite(self.time_us).any(axis=0)):
            known = self.time_us[:, *cell]
            known = np.sort(known[np.isfinite(known)])
            if ranks := stats.median_ranks(known.size):
                low[*cell], high[*cell] = known[ranks[0]], known[ranks[1]]
        return low, high


def read_launches(folder: RunFolder) -> Iterator[LaunchSamples]:
    """Yield every measurement of a run that has numbers; of a case measured again in the same launch the later one."""
    cases = {item.case.case_id: item.case for item in folder.plan()}
    last = {(m.case_id, m.launch): m for m in folder.measurements() if m.status is Status.OK}
    for attempt in dict.fromkeys(m.attempt for m in last.values()):
        for item in sample_files.read(folder, attempt):
            case, measured = cases.get(item.case_id), last.get((item.case_id, item.launch))
            if case is not None and measured is not None and measured.attempt == attempt:
                sample_files.check_ranks(folder, attempt, item, case)
                yield LaunchSamples(
                    case=case,
                    launch=(folder.run_id, attempt),
                    time_us=item.time_us,
                    begin_us=item.begin_us,
                    fabric=measured.fabric,
                )


def of_runs(folders: Sequence[RunFolder]) -> list[Matrix]:
    """Return a matrix for each set-up and size; launches of several runs with the same set-up stand side by side."""
    by_key: dict[str, dict[tuple[str, ...], Floats]] = {}
    about: dict[str, Row] = {}
    for folder in folders:
        rows = so_far.of_run(folder).rows
        if not any(row.collective == COLLECTIVE for row in rows.values()):
            continue
        for item in read_launches(folder):
            row = rows.get(item.case.case_id)
            if item.case.collective != COLLECTIVE or row is None or row.status is not Status.OK:
                continue
            key, n = _key(item.case), item.case.setup.layout.ranks
            about.setdefault(key, _whole(row))
            # Under several seeds a launch measures the same several times, each of which has a matrix of its own.
            name = (*item.launch, f"{item.case.seed:020d}")
            cells = by_key.setdefault(key, {}).setdefault(name, np.full((n, n), np.nan))
            for src, dst, times in _messages(item):
                cells[src, dst] = np.median(times)
    matrices = [
        Matrix(
            key=key,
            row=about[key],
            layout=Layout(about[key].nodes, about[key].ranks // about[key].nodes),
            time_us=np.array([launches[name] for name in sorted(launches)]),
        )
        for key, launches in by_key.items()
    ]
    return sorted(matrices, key=lambda matrix: matrix.size_bytes)


def _key(case: Case) -> str:
    """Return what rounds and the two directions of a message alone have in common."""
    values = as_dict(case)
    arguments = {key: value for key, value in case.arguments.items() if key != "round"}
    arguments["direction"] = "both" if arguments["direction"] == "both" else "one"
    shared = (
        "collective",
        "algorithm",
        "params",
        "in_place",
        "groups",
        "mode",
        "buffers",
        "cache",
        "dtype",
        "size_bytes",
    )
    return digest([case.setup.key, arguments, *(values[name] for name in shared)])


def _whole(row: Row) -> Row:
    """Return the row as that of all rounds and, where messages go alone, of both directions."""
    kept = {key: value for key, value in row.arguments.items() if key != "round" and (key, value) not in _ONE_WAY}
    return dataclasses.replace(row, arguments=kept)


def _messages(item: LaunchSamples) -> Iterator[tuple[int, int, Floats]]:
    """Yield (sender, receiver, time of each sample) for the messages of a call; ranks are global."""
    both = item.case.arguments["direction"] == "both"
    # A rank that left the barrier early waits for its partner, whose fault that need not be.
    begins = item.begin_us if item.case.mode == "isolated" else None
    ends_us = item.time_us if begins is None else item.time_us + begins
    for ranks in item.case.setup.layout.partition(item.case.groups):
        for src, dst in pairs.directed(item.case.spec):
            two = [ranks[src], ranks[dst]]
            began = 0.0 if begins is None else begins[:, two].max(axis=1)
            yield ranks[src], ranks[dst], ends_us[:, two[both:]].max(axis=1) - began


def write(matrices: Iterable[Matrix], folder: Path, prefix: str = "") -> list[Path]:
    """Write `pairs.csv`, a line for each two ranks, and `pairs.json`, an object for each matrix, if there are matrices.

    Return the paths.
    """
    matrices = list(matrices)
    if not matrices:
        return []
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_COLUMNS)
    objects = []
    for matrix in matrices:
        medians, (low, high) = matrix.median_us, matrix.interval_us
        launches = np.isfinite(matrix.time_us).sum(axis=0)
        layout, size = matrix.layout, matrix.size_bytes
        for src, dst in np.argwhere(np.isfinite(medians)).tolist():
            known = [_rounded(values[src, dst]) for values in (medians, low, high)]
            names = (matrix.key, size, src, dst, layout.node(src), layout.node(dst), layout.link(src, dst))
            rate = round(gbps(size, float(medians[src, dst])), 6)
            writer.writerow([*names, *("" if value is None else value for value in known), rate, launches[src, dst]])
        objects.append(
            {
                "matrix": matrix.key,
                "what": matrix.row.what,
                "transport": matrix.row.transport,
                "size_bytes": size,
                "nodes": layout.nodes,
                "fabric": matrix.row.fabric,
                "ranks": layout.ranks,
                "launches": matrix.launches,
                "time_us": [[_rounded(value) for value in line] for line in medians.tolist()],
            }
        )
    texts = {"csv": table.getvalue(), "json": "".join(json.dumps(line) + "\n" for line in objects)}
    paths = [folder / f"{prefix}pairs.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text)
    return paths


def _rounded(value: Any) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None


def _median(times: Floats) -> Floats:
    """Return the median over the first axis of what is known."""
    known = np.isfinite(times).any(axis=0)
    medians = np.full(times.shape[1:], np.nan)
    medians[known] = np.nanmedian(times[:, known], axis=0)
    return medians
