"""`commbench tune`: from the words on the command line to a profile."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from commbench import variables
from commbench.algorithms import outside
from commbench.console import Console
from commbench.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError, storage
from commbench.launch import placement
from commbench.layout import Layout
from commbench.output import grid
from commbench.output.answer import traced
from commbench.output.answer.tuned import answer
from commbench.output.grid import TableStyle
from commbench.profile import Profile
from commbench.profile import file as profile_file
from commbench.rank_info import detect
from commbench.record import folder as trace_folder
from commbench.record import recipe as trace_recipe
from commbench.record.exchanges import exchanges
from commbench.record.trace import ProgramTrace
from commbench.record.ways import is_sum
from commbench.records import PlannedCase
from commbench.sweep import local_gpus, prepare, recipes, session
from commbench.sweep.prepare import SweepRequest
from commbench.tune import describe, saving, space
from commbench.tune import run as engine
from commbench.tune.journal import Journal
from commbench.tune.space import Region
from commbench.tune.stages import Stages, new_folder
from commbench.tune.tuner import Tuned
from commbench.units import format_seconds


def run(request: SweepRequest, out: Path | None) -> int:
    """Return the exit code: 0 there is a profile, 130 interrupted. Raises `CommbenchError`."""
    grid.check(request.columns, [column.name for column in describe.columns()])
    look = TableStyle(columns=request.columns, markdown=request.format == "markdown")
    journal = None
    if request.resume is not None:
        journal, request, out = _resume(request, out)
    typed = request.words
    words, limits = engine.read_limits(request.words)
    request = replace(request, words=words)
    if detect(os.environ) is not None:
        raise UsageError(
            "commbench tune starts launches of its own, and here a launcher has started it as a rank",
            hint="start it without the launcher; --launcher says which one it shall use",
        )
    console = Console(quiet=request.quiet, verbose=request.verbose)
    recipe, configs = prepare.configure(request.words, with_parts=False)
    trace = trace_folder.read(Path(recipe)) if recipes.is_trace(recipe) else None
    if trace is not None:
        configs = engine.of_program(configs, Layout(*trace.layout()), reductions=limits.reductions)
    prepare.refuse_code(request, configs)
    if request.show_config:
        sys.stdout.write(prepare.show_config(configs))
        return EXIT_OK
    launchers, configs = prepare.choose_launchers(request, configs, console)
    configs = [engine.shorten(item, limits) for item in configs]
    regions = space.regions(configs)
    if trace is not None:
        regions = saving.weigh(regions, trace_recipe.sent_cases(trace).cases)
    runnable = [PlannedCase(case=case) for one in regions for problem in one.problems for case in problem.candidates]
    possible = local_gpus.check(prepare.check_fabrics(runnable, launchers), launchers)
    placement.check(possible, launchers, console.note)
    if request.dry_run:
        sys.stdout.write("\n".join(describe.plan(regions, limits.budget_s, limits.gain)) + "\n")
        return EXIT_OK
    if out is not None:
        _check_writable(out)
    journal = journal or Journal.begin(new_folder(request.out), typed, request.launcher, out)
    folder = journal.path
    prepare.note_declared(runnable, launchers, console)
    target = out or folder / profile_file.NAME
    stages = Stages(replace(request, out=folder), configs[0], launchers, console, journal)
    session.interrupt_on_sigterm()
    go_on = f"commbench tune --resume {shlex.quote(str(folder))}"
    with storage(folder, f"make room, then go on with: {go_on}"):
        try:
            with console:
                tuned = engine.tune(regions, configs, stages, limits, console)
        except KeyboardInterrupt:
            console.note(f"interrupted; no profile was written. {journal.count} stages are whole, all in {folder}")
            console.note(f"go on with: {go_on}")
            return EXIT_INTERRUPTED
        finally:
            journal.close()
        profile = engine.to_profile(tuned, request.words, limits, stages.seconds)
        profile_file.save(profile, folder / profile_file.NAME)
    if out is not None:
        _copy(profile, folder / profile_file.NAME, out)
    if request.format == "json":
        for choice in profile.choices:
            sys.stdout.write(json.dumps(dataclasses.asdict(choice)) + "\n")
    else:
        sys.stdout.write("\n".join(describe.table(profile, [one.control for one in tuned], look)) + "\n")
    saved, values = "", dict[str, Any]()
    if trace is not None:
        saved, values = _saving(trace, regions, tuned, stages)
    found = answer(profile, describe.next_step(target, trace, reductions=limits.reductions), saved)
    if request.format == "json":
        sys.stdout.write(json.dumps(found.as_dict() | values) + "\n")
    else:
        sys.stdout.write("\n".join(found.lines()) + "\n")
    if request.plots:
        _draw(folder, console)
    console.note(f"profile: {target}; samples: {folder}; {format_seconds(stages.seconds)}")
    for line in describe.use(target, trace, reductions=limits.reductions) if found.claims else []:
        console.note(line)
    return EXIT_OK


def _check_writable(out: Path) -> None:
    """Raise `UsageError` where no profile could be written: before minutes are spent on it."""
    try:
        with tempfile.TemporaryFile(dir=out.resolve().parent):
            return
    except OSError as error:
        hint = "--out FILE, in a folder of yours"
        raise UsageError(f"cannot write {str(out)!r}: {error.strerror}", hint=hint) from error


def _resume(request: SweepRequest, out: Path | None) -> tuple[Journal, SweepRequest, Path | None]:
    """Return a tuning to go on with, and what was asked when it began. Raises `CommbenchError`."""
    assert request.resume is not None
    if request.words or request.dry_run or request.show_config or request.launcher:
        raise UsageError(
            "--resume takes no recipe, no KEY=VALUE and no --launcher, and it measures",
            hint="a resumed tuning keeps what was asked; for something else start a new one",
        )
    out = out.resolve() if out else None
    journal = Journal.open(request.resume)
    try:
        os.chdir(journal.about["directory"])
    except OSError as error:
        journal.close()
        where = journal.about["directory"]
        raise UsageError(f"the folder that it was started in, {where!r}, is gone: {error.strerror}",
                         hint="start a new tuning") from error  # fmt: skip
    words = tuple(journal.about["words"])
    _refuse_code(words, f"the tuning {request.resume}", request.allow_env)
    asked = replace(request, words=words, launcher=journal.about["launcher"])
    return journal, asked, out or (Path(journal.about["out"]) if journal.about["out"] else None)


def _refuse_code(words: Sequence[str], whose: str, allowed: Collection[str]) -> None:
    """Raise `UsageError` where words of a file load code that the user does not name: others may have written it."""
    trusted = {one.file for one in outside.loaded()}
    for word in words:
        key, _, value = word.partition("=")
        if key.startswith("env."):
            variables.refuse_code({key.removeprefix("env."): value}, whose, allowed)
        for item in value.split(",") if key == "algorithm" else ():
            path = item if item.endswith(".py") else item.rpartition(":")[0]
            if outside.is_file(item) and str(Path(path).expanduser().absolute()) not in trusted:
                raise UsageError(f"{whose} names the file {item!r}, and loads no code by itself",
                                 hint=f"if you trust that file: --algorithms {shlex.quote(item)}")  # fmt: skip


def _copy(profile: Profile, kept: Path, out: Path) -> None:
    """Write the profile where the user wants it. Raises `UsageError` where that cannot be, and says where it is."""
    try:
        profile_file.save(profile, out)
    except UsageError as error:
        raise UsageError(f"{error}; the profile is whole in {kept}", hint=f"make room, then copy {kept}") from error


def _saving(
    trace: ProgramTrace, regions: Sequence[Region], tuned: Sequence[Tuned], stages: Stages
) -> tuple[str, dict[str, Any]]:
    """Return what the profile saves of a step of the program, in words and as facts."""
    predicted = saving.predict(regions, tuned, stages.folders)
    said = traced.waits(trace, exchanges(trace))
    sums_us = said.sums_us if any(is_sum(one.collective) for each in regions for one in each.problems) else 0.0
    waited_us = said.tunable_us - said.late_us + sums_us if said.waits_seen else None
    values = {} if predicted is None else dataclasses.asdict(predicted)
    text = saving.sentence(predicted, said.step_us, waited_us)
    return f"the profile {text}" if text.startswith("saves") else text, {
        **values, "step_us": said.step_us, "waited_us": waited_us
    }  # fmt: skip


def _draw(folder: Path, console: Console) -> None:
    from commbench.commands.plot import draw_profile

    try:
        for path in draw_profile([folder]):
            console.note(f"plot: {path}")
    except (OSError, ValueError) as error:
        console.note(f"no plot: {error}")
