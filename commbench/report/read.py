"""Which page a path has: run folders of sweeps, checks, tunings, trainings and A/Bs, traces, profiles, plans, logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from commbench.analysis.bounds import Told
from commbench.check import kept
from commbench.errors import UsageError
from commbench.profile import file as profile_file
from commbench.record import folder as traces
from commbench.report import check, compared, planned, sweep, traced, trained, tuned
from commbench.report.page import PageReport
from commbench.train import results
from commbench.tune import journal


def reports(paths: Sequence[Path], told: Told, note: Callable[[str], None]) -> list[PageReport]:
    """Return the reports of paths: sweeps and files share one, and so do trainings. Raises `CommbenchError`."""
    kinds = {path: _kind(path) for path in paths}
    made: list[PageReport] = []
    shared: set[str] = set()
    for path, kind in kinds.items():
        alike = [other for other, its in kinds.items() if its == kind]
        if kind in ("sweep", "training"):
            if kind not in shared:
                made.append(sweep.report(alike, told, note) if kind == "sweep" else trained.report(alike))
            shared.add(kind)
            continue
        made.append(_ALONE[kind](path))
    return made


_ALONE: dict[str, Callable[[Path], PageReport]] = {
    "A/B": compared.report,
    "check": check.report,
    "plan": planned.report,
    "trace": traced.report,
    "tuning": tuned.report,
}


def _kind(path: Path) -> str:
    if not path.exists():
        raise UsageError(f"{str(path)!r} is not there", hint="give run folders, profiles, traces, plans or logs")
    if (path / "ab.json").is_file():
        return "A/B"
    if traces.is_trace(path):
        return "trace"
    if profile_file.is_one(path) or journal.is_one(path):
        return "tuning"
    if planned.is_one(path):
        return "plan"
    if path.is_dir() and results.is_one(path):
        return "training"
    return "check" if kept.is_one(path) else "sweep"
