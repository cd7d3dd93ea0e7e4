"""`commbench plot`: draw runs again, several in one figure, and results of other programs beside them.

Runs are sweeps, or trainings, or one A/B, or one trace of a program, or one profile or tuning; they do not mix.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from commbench.ab import launches as programs
from commbench.analysis.bounds import Rates, Told
from commbench.console import stderr_console
from commbench.errors import EXIT_OK, UsageError
from commbench.links import parse_link_rates
from commbench.output.answer import yardstick
from commbench.profile import Profile
from commbench.profile import file as profile_file
from commbench.record import folder
from commbench.record.exchanges import exchanges
from commbench.records import Status
from commbench.run_folder import RunFolder
from commbench.serialise import digest
from commbench.train import ab, results
from commbench.tune import journal


def run(
    paths: Sequence[Path], out: Path | None, *, ranks: int | None = None, nodes: int | None = None,
    link_rate: Sequence[str] = (),
) -> int:  # fmt: skip
    """Draw run folders and files of other programs; return 0. What these do not say, the others do."""
    told = Told(ranks=ranks, nodes=nodes, rates=parse_link_rates(link_rate))
    if any((path / "ab.json").is_file() for path in paths):
        _refuse(told, "an A/B")
        written = draw_ab(paths, out)
    elif any(folder.is_trace(path) for path in paths):
        _refuse(told, "a trace")
        written = draw_trace(paths, out)
    elif any(profile_file.is_one(path) for path in paths):
        _refuse(dataclasses.replace(told, rates={}), "a profile")
        written = draw_profile(paths, out, told.rates)
    elif any(results.is_one(path) for path in paths):
        _refuse(told, "a training")
        written = draw_trainings(paths, out)
    else:
        if path := next(filter(journal.is_one, paths), None):
            hint = f"commbench tune --resume {path}; or draw a stage, a run folder inside"
            raise UsageError(f"the tuning {str(path)!r} has no profile yet", hint=hint)
        written = draw_sweeps(paths, out, told)
    for path in written:
        stderr_console().print(f"plot: {path}")
    return EXIT_OK


def _refuse(told: Told, what: str) -> None:
    """Raise `UsageError` for options that a picture of `what` has no use for."""
    given = {"--ranks": told.ranks, "--nodes": told.nodes, "--link-rate": told.rates}
    if option := next((name for name, value in given.items() if value), ""):
        fits = "sweeps, profiles and logs of other programs" if told.rates else "logs of other programs"
        raise UsageError(f"{option} says nothing of {what}", hint=f"leave it out; it is for the bandwidths of {fits}")


def draw_sweeps(paths: Sequence[Path], out: Path | None, told: Told) -> list[Path]:
    """Draw runs with files beside them; return the PNG files. Files alone are a table on stdout too.

    Raises `UsageError`.
    """
    from commbench import plots
    from commbench.analysis import pair_matrices
    from commbench.output.combine import combine
    from commbench.plots.settings import FIGURE_KEYS

    runs = combine(paths, told, FIGURE_KEYS, stderr_console().print)
    if runs.about["partial"]:
        stderr_console().print(f"partial: {runs.about['partial']}")
    if runs.folder is None:
        rows: list[dict[Any, Any]] = runs.rows.to_dict("records")
        sys.stdout.write(yardstick.table(rows, paths))
    target = _target(runs.folder, out) if runs.folder else out or Path("plots")
    prefix = _prefix(runs.sources)
    try:
        written = plots.draw(runs.rows, runs.about, target, prefix=prefix)
        if runs.about["pairs"]:
            written += pair_matrices.write(runs.about["pairs"], target, prefix)
        if len(paths) == 2:
            written += _before_after(paths, told, runs.about, target, prefix)
    except OSError as error:
        raise _unwritable(target, error) from error
    return written


def _before_after(paths: Sequence[Path], told: Told, about: Mapping[str, Any], target: Path, prefix: str) -> list[Path]:
    """Draw the bandwidth of two runs, the first one before and the second one after; nothing of files."""
    if not all(path.is_dir() for path in paths):
        return []
    from commbench.analysis import compare
    from commbench.plots import before_after, save

    comparisons = compare.compare(*(compare.load(path, told) for path in paths))
    made = f"{about['machine_text']} | {about['started'][:10]} | commbench {about['commbench_version']}"
    drawn = before_after.of_runs(comparisons, compare.yardsticks(paths[0], told.rates), made)
    return save({"before-after": drawn}, target, prefix) if drawn else []


def draw_profile(paths: Sequence[Path], out: Path | None = None, rates: Rates = MappingProxyType({})) -> list[Path]:
    """Draw the one profile, or the one folder of a tuning; return the PNG files. Raises `UsageError`.

    rates: declared, for the bound; else it is what the stages of the tuning have found.
    """
    if len(paths) > 1:
        raise UsageError(f"{len(paths)} paths, one of them a profile", hint="it is drawn alone")
    path = paths[0].resolve()
    stages = path if path.is_dir() else path.parent
    profile = profile_file.load(path / profile_file.NAME if path.is_dir() else path)
    target = _target(stages, out)
    from commbench.plots import before_after, gains, save

    bound = {**_bounds(profile, stages), **before_after.declared_bounds(profile, rates)}
    figures = {"gains": gains.gains(profile), "bandwidth": before_after.of_profile(profile, bound)}
    try:
        return save({name: figure for name, figure in figures.items() if figure is not None}, target)
    except OSError as error:
        raise _unwritable(target, error) from error


def _bounds(profile: Profile, stages: Path) -> dict[tuple[str, str, int], float]:
    """Return what the links need at the least, as the stages beside a profile say; nothing where they are not there."""
    found = {}
    for run in {one.run for choice in profile.choices for one in choice.evidence}:
        if Path(run).name == run and (stages / run / "run.json").is_file():
            for row in RunFolder.open(stages / run).rows().values():
                if row.status is Status.OK and row.bound_us:
                    found[run, row.collective, row.size_bytes] = row.bound_us
    return found


def draw_trainings(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Draw run folders of trainings, several in one figure each; return the PNG files. Raises `UsageError`."""
    for path in paths:
        if not results.is_one(path):
            raise UsageError(f"{str(path)!r} is not a training, and others here are",
                             hint="one call for trainings, another one for sweeps and files")  # fmt: skip
    trainings = [results.read(path) for path in paths]
    target = _target(paths[0].resolve(), out)
    from commbench.plots import training

    try:
        return training.draw(trainings, target, prefix=_prefix([one.run_id for one in trainings]))
    except OSError as error:
        raise _unwritable(target, error) from error


def draw_ab(paths: Sequence[Path], out: Path | None) -> list[Path]:
    """Draw the one folder of an A/B; return the PNG file. Raises `UsageError`."""
    if len(paths) > 1:
        raise UsageError(f"{len(paths)} folders, one of them of an A/B", hint="it is drawn alone")
    target = _target(paths[0].resolve(), out)
    from commbench.plots.ab import draw, draw_programs

    try:
        if programs.is_one(paths[0]):
            about, made = programs.read_answer(paths[0])
            return draw_programs(made, about, target)
        launches, about, names = ab.read(paths[0])
        return draw(launches, ab.compare(launches), about, names, target)
    except OSError as error:
        raise _unwritable(target, error) from error


def draw_trace(paths: Sequence[Path], out: Path | None) -> list[Path]:
    """Draw the one trace of a program; return the PNG file. Raises `UsageError`."""
    if len(paths) > 1:
        raise UsageError(f"{len(paths)} folders, one of them a trace of commbench record", hint="it is drawn alone")
    trace = folder.read(paths[0])
    target = _target(paths[0].resolve(), out)
    from commbench.plots import program_trace

    try:
        return program_trace.draw(trace, exchanges(trace), target)
    except OSError as error:
        raise _unwritable(target, error) from error


def _prefix(sources: Sequence[str]) -> str:
    """Return what names of files begin with: a figure of several sources never replaces the first one's own."""
    return f"compare-{digest(list(sources))[:6]}-" if len(sources) > 1 else ""


def _target(run: Path, out: Path | None) -> Path:
    """Return where figures go: plots/ in the run if nothing else is said. A run from elsewhere leads nowhere else."""
    target = out or run / "plots"
    if out is None and (links := [path for path in (target, *target.glob("*")) if path.is_symlink()]):
        raise UsageError(f"{links[0]} is a link, and figures go into the folder of their run",
                         hint="remove it, or choose a folder of yours: --out DIR")  # fmt: skip
    return target


def _unwritable(target: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write {str(target)!r}: {error.strerror}", hint="choose a folder of yours: --out DIR")
