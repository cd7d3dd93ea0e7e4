"""`commbench tune`: from the words on the command line to a profile."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from commbench.console import Console
from commbench.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError, storage
from commbench.launch import placement
from commbench.output.answer.tuned import answer
from commbench.profile import Profile
from commbench.profile import file as profile_file
from commbench.rank_info import detect
from commbench.record import describe as traced_describe
from commbench.record import folder as trace_folder
from commbench.record import recipe as traced
from commbench.record.exchanges import exchanges
from commbench.record.trace import ProgramTrace
from commbench.records import PlannedCase
from commbench.sweep import prepare, recipes, session
from commbench.sweep.prepare import SweepRequest
from commbench.tune import describe, saving, space
from commbench.tune import run as engine
from commbench.tune.space import Region
from commbench.tune.stages import Stages, new_folder
from commbench.tune.tuner import Tuned
from commbench.units import format_seconds


def run(request: SweepRequest, out: Path | None) -> int:
    """Return the exit code: 0 there is a profile, 130 interrupted. Raises `CommbenchError`."""
    began = time.monotonic()
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
        configs = engine.of_program(configs)
    prepare.refuse_code(request, configs)
    if request.show_config:
        sys.stdout.write(prepare.show_config(configs))
        return EXIT_OK
    launchers, configs = prepare.choose_launchers(request, configs, console)
    configs = [engine.shorten(item, limits) for item in configs]
    regions = space.regions(configs)
    if trace is not None:
        regions = saving.weigh(regions, traced.sent_cases(trace).cases)
    runnable = [PlannedCase(case=case) for one in regions for problem in one.problems for case in problem.candidates]
    placement.check(prepare.check_fabrics(runnable, launchers), launchers, console.note)
    if request.dry_run:
        sys.stdout.write("\n".join(describe.plan(regions, limits.budget_s, limits.gain)) + "\n")
        return EXIT_OK
    if out is not None and not out.resolve().parent.is_dir():
        raise UsageError(f"cannot write {str(out)!r}: its folder is not there", hint="--out FILE, in a folder of yours")
    folder = new_folder(request.out)
    prepare.note_declared(runnable, launchers, console)
    target = out or folder / profile_file.NAME
    stages = Stages(replace(request, out=folder), configs[0], launchers, console, began)
    session.interrupt_on_sigterm()
    with storage(folder, f"make room, then tune again; the samples of finished stages are in {folder}"):
        try:
            with console:
                tuned = engine.tune(regions, configs, stages, limits, console)
        except KeyboardInterrupt:
            console.note(f"interrupted; no profile was written. What was measured is in {folder}")
            return EXIT_INTERRUPTED
        profile = engine.to_profile(tuned, request.words, limits, time.monotonic() - began)
        profile_file.save(profile, folder / profile_file.NAME)
    if out is not None:
        _copy(profile, folder / profile_file.NAME, out)
    if request.format == "json":
        for choice in profile.choices:
            sys.stdout.write(json.dumps(dataclasses.asdict(choice)) + "\n")
    else:
        sys.stdout.write("\n".join(describe.table(profile, [one.control for one in tuned])) + "\n")
    saved, values = "", dict[str, Any]()
    if trace is not None:
        saved, values = _saving(trace, Path(recipe), regions, tuned, stages)
    found = answer(profile, describe.next_step(target, trace), saved)
    if request.format == "json":
        sys.stdout.write(json.dumps(found.as_dict() | values) + "\n")
    else:
        sys.stdout.write("\n".join(found.lines()) + "\n")
    if request.plots:
        _draw(folder, console)
    console.note(f"profile: {target}; samples: {folder}; {format_seconds(time.monotonic() - began)}")
    for line in describe.use(target, trace):
        console.note(line)
    return EXIT_OK


def _copy(profile: Profile, kept: Path, out: Path) -> None:
    """Write the profile where the user wants it. Raises `UsageError` where that cannot be, and says where it is."""
    try:
        profile_file.save(profile, out)
    except UsageError as error:
        raise UsageError(f"{error}; the profile is whole in {kept}", hint=f"make room, then copy {kept}") from error


def _saving(
    trace: ProgramTrace, path: Path, regions: Sequence[Region], tuned: Sequence[Tuned], stages: Stages
) -> tuple[str, dict[str, Any]]:
    """Return what the profile saves of a step of the program, in words and as facts."""
    predicted = saving.predict(regions, tuned, stages.folders)
    said = traced_describe.answer(trace, exchanges(trace), path)
    waited_us = said.tunable_us - said.late_us if said.waits_seen else None
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
