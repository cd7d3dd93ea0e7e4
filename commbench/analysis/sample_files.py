"""The files in `samples/` of a run folder: what every rank took in every call, line by line, checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from commbench.errors import CorruptFile
from commbench.records import Case
from commbench.run_folder import LinesRead, RunFolder, read_lines
from commbench.serialise import check_types, parse_json
from commbench.stats import Floats

_TYPES = {"case_id": str, "launch": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSamples:
    """The samples of one measurement, microseconds: samples x ranks, of warm-ups too.

    `begin_us`: when each rank left the barrier, where ranks share a clock.
    """

    case_id: str
    launch: int
    warmup_us: Floats
    time_us: Floats
    host_us: Floats
    begin_us: Floats | None = None

    @property
    def slowest_us(self) -> Floats:
        """Return the maximum over ranks for each sample."""
        found: Floats = self.time_us.max(axis=1)
        return found


def read(folder: RunFolder, attempt: str, place: LinesRead | None = None) -> Iterator[MeasuredSamples]:
    """Yield what the process group `attempt` has measured, from `place` on if there is one. Raises `CorruptFile`."""
    return read_lines(folder.samples_path(attempt), parse, hint=folder.mending, place=place)


def check_ranks(folder: RunFolder, attempt: str, item: MeasuredSamples, case: Case) -> None:
    """Raise `CorruptFile` where the samples are of other ranks than the case has."""
    if item.time_us.shape[1] != case.setup.layout.ranks:
        raise CorruptFile(
            f"{folder.samples_path(attempt)}: {item.time_us.shape[1]} ranks of {item.case_id}, which has "
            f"{case.setup.layout.ranks}",
            hint="the plan or the samples are of another run: restore them, or start a new run",
        )


def parse(text: bytes) -> MeasuredSamples:
    """Return the samples of one line. Raises `ValueError` for whatever is no line of samples."""
    raw = parse_json(text)
    check_types(raw, _TYPES)
    time_us = _times(raw, "time_us")
    if not time_us.size:
        raise ValueError("'time_us' has no samples")
    warmup_us = _times(raw, "warmup_us") if raw.get("warmup_us") else np.empty((0, time_us.shape[1]))
    host_us = _times(raw, "host_us")
    begin_us = _times(raw, "begin_us") if "begin_us" in raw else None
    alike = (host_us, time_us if begin_us is None else begin_us)
    if any(times.shape != time_us.shape for times in alike) or warmup_us.shape[1] != time_us.shape[1]:
        raise ValueError("its lists of times are not of as many samples and ranks as 'time_us'")
    return MeasuredSamples(case_id=raw["case_id"], launch=raw["launch"], warmup_us=warmup_us, time_us=time_us,
                           host_us=host_us, begin_us=begin_us)  # fmt: skip


def _times(raw: dict[str, Any], key: str) -> Floats:
    """Return a list of lists of numbers, all of one length."""
    values = raw.get(key)
    try:
        times = np.asarray(values) if isinstance(values, list) else np.empty(0)
        fine = times.ndim == 2 and times.dtype.kind in "fiu" and bool(np.isfinite(times).all()) and times.shape[1] > 0
    except (ValueError, OverflowError):  # lists of several lengths
        fine = False
    if not fine or times.min(initial=0) < 0:
        raise ValueError(f"{key!r} is not a list of samples, each with a time of every rank")
    return times.astype(float)
