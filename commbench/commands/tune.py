"""`commbench tune`: from the words on the command line to a profile."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import commbench
from commbench import cost_model
from commbench.collectives.base import PART_BYTES
from commbench.console import Console
from commbench.errors import EXIT_INTERRUPTED, CommbenchError, EnvironmentProblem, UsageError
from commbench.launch import placement
from commbench.machine import metadata
from commbench.profile import Choice, Profile
from commbench.profile import file as profile_file
from commbench.rank_info import detect
from commbench.records import Case, PlannedCase
from commbench.run_folder import timestamp, write_atomically
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.sweep import config, plan, prepare, session
from commbench.sweep.prepare import SweepRequest
from commbench.sweep.sizes import Sizes
from commbench.tune import MINIMUM_GAIN, space
from commbench.tune.search import Predict
from commbench.tune.space import Region
from commbench.tune.stages import Stages, new_folder
from commbench.tune.tuner import MOST_PAIRS, Confirmation, Control, CostModel, Tuned, Tuner
from commbench.units import format_seconds, format_size

_BUDGET = "10m"
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_LEAST_R2 = 0.9  # of a model that may rule candidates out
_PAIR_SIZES = 4
_PAIR_ROUNDS = [0, 1, 2]  # of a tournament: other pairs each, inside of nodes and between them
_OVERDRAWN = 1.05  # times the budget: told
_TIMEOUT_PART = 20  # of the budget: what one hang may cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The keys that tuning has and a sweep has not."""

    budget_s: float
    gain: float


def run(request: SweepRequest, out: Path | None) -> int:
    """The exit code: 0 there is a profile, 130 interrupted. Raises `CommbenchError`."""
    began = time.monotonic()
    words, wish = own_keys(request.words)
    request = replace(request, words=words)
    if detect(os.environ) is not None:
        raise UsageError(
            "commbench tune starts launches of its own, and here a launcher has started it as a rank",
            hint="start it without the launcher; --launcher says which one it shall use",
        )
    console = Console(quiet=request.quiet, verbose=request.verbose)
    _, configs = prepare.configure(request.words)
    if request.show_config:
        sys.stdout.write(prepare.show_config(configs))
        return 0
    launchers, configs = prepare.choose_launchers(request, configs, console)
    configs = [_shorter(item, wish) for item in configs]
    regions = space.regions(configs)
    runnable = [PlannedCase(case=case) for one in regions for problem in one.problems for case in problem.candidates]
    placement.check(prepare.check_fabrics(runnable, launchers), launchers, console.note)
    if request.dry_run:
        sys.stdout.write("\n".join(_plan_text(regions, wish)) + "\n")
        return 0
    if out is not None and not out.resolve().parent.is_dir():
        raise UsageError(f"cannot write {str(out)!r}: its folder is not there", hint="--out FILE, in a folder of yours")
    folder = new_folder(request.out)
    target = out or folder / "profile.json"
    stages = Stages(replace(request, out=folder), configs[0], launchers, console, began)
    session.interrupt_on_sigterm()
    try:
        with console:
            tuned = _tune(regions, configs, stages, wish, console)
    except KeyboardInterrupt:
        console.note(f"interrupted; no profile was written. What was measured is in {folder}")
        return EXIT_INTERRUPTED
    profile = _profile(tuned, request.words, wish, time.monotonic() - began)
    profile_file.save(profile, target)
    if out is not None:
        write_atomically(folder / "profile.json", profile_file.dump(profile))
    if request.format == "json":
        for choice in profile.choices:
            sys.stdout.write(json.dumps(dataclasses.asdict(choice)) + "\n")
    else:
        sys.stdout.write("\n".join(table(profile, [one.control for one in tuned])) + "\n")
    if request.plots:
        _draw(profile, folder, console)
    console.note(f"profile: {target}; samples: {folder}; {format_seconds(time.monotonic() - began)}")
    console.note(
        f"use it: commbench export {target} --format env, or commbench.load_profile({str(target)!r}) in Python"
    )
    return 0


def own_keys(words: Sequence[str]) -> tuple[tuple[str, ...], Wish]:
    """`budget=` and `gain=` out of the words. Raises `UsageError`."""
    left, budget, gain = [], _BUDGET, MINIMUM_GAIN
    for word in words:
        key, _, value = word.partition("=")
        if key == "budget":
            budget = value
        elif key == "gain":
            try:
                gain = float(value)
            except ValueError:
                gain = -1.0
            if not 0 <= gain <= 10:
                raise UsageError(f"gain={value}", hint="the least gain that is worth a change: 0.03 is 3 %")
        else:
            left.append(word)
    return tuple(left), Wish(budget_s=parse_seconds("budget", budget), gain=gain)


def parse_seconds(key: str, text: str) -> float:
    """`90`, `90s`, `8m`, `1.5h`. Raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if match is None or not float(match[1]):
        raise UsageError(f"{key}={text}", hint="a time above 0: 90s, 8m, 1.5h")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def _shorter(item: config.SweepConfig, wish: Wish) -> config.SweepConfig:
    """A candidate that hangs shall not take the budget with it."""
    if "timeout" in item.typed:
        return item
    return replace(item, timeout=min(item.timeout, max(5.0, wish.budget_s / _TIMEOUT_PART)))


def _tune(
    regions: Sequence[Region], configs: Sequence[config.SweepConfig], stages: Stages, wish: Wish, console: Console
) -> list[Tuned]:
    tuned = []
    for index, region in enumerate(regions):
        left_s = max(0.0, wish.budget_s - stages.spent_s) / (len(regions) - index)
        console.note(f"tuning {region.default}: {_counted(region)}, {format_seconds(left_s)}")
        folders = len(stages.folders)

        def fit(first: int = folders, region: Region = region) -> Predict | None:
            return _predictor(stages, first, console)

        asked = [item.launches for item in configs if "launches" in item.typed]
        launches = max([PAIRS_FOR_CLAIM, *asked])
        tuner = Tuner(
            region, stages, budget_s=left_s, scope=stages.scope, note=console.note,
            confirmation=Confirmation(minimum_gain=wish.gain, pairs=(launches, max(launches, MOST_PAIRS))),
            model=CostModel(probes=_pairs(region, configs), fit=fit),
        )  # fmt: skip
        tuned.append(tuner.run())
    if stages.spent_s > _OVERDRAWN * wish.budget_s:
        console.note(
            f"budget={format_seconds(wish.budget_s)} was exceeded: it took {format_seconds(stages.spent_s)}; "
            f"a confirmation is at least {PAIRS_FOR_CLAIM} launches"
        )
    return tuned


def _pairs(region: Region, configs: Sequence[config.SweepConfig]) -> list[Case]:
    """Single messages between two ranks, from the smallest block to the largest buffer: what a model is made of."""
    outer = region.default
    sizes = [problem.size_bytes for problem in region.problems]
    smallest, largest = max(min(sizes) // outer.layout.ranks, PART_BYTES), max(sizes)
    steps = _PAIR_SIZES - 1
    wanted = {round(smallest * (largest / smallest) ** (step / steps)) for step in range(_PAIR_SIZES)}
    found: dict[str, Case] = {}
    for item in configs:
        if outer.transport not in item.transport:
            continue
        for size in sorted(wanted):
            narrow = replace(
                item, transport=[outer.transport], collective=["pairs"], algorithm=["direct"], params={},
                arguments={"round": list(_PAIR_ROUNDS)},
                layer={}, mode=["isolated"], buffers=["plain"], size_range=Sizes(size, size), typed=frozenset(),
            )  # fmt: skip
            try:
                planned = plan.expand([narrow])
            except CommbenchError:
                continue
            for one in planned:
                if not one.skip and one.case.outer.key == outer.key:
                    found.setdefault(one.case.case_id, one.case)
    return list(found.values())


def _predictor(stages: Stages, first: int, console: Console) -> Predict | None:
    """What the model says of cases that were not measured; None where it is not good enough to rule anything out."""
    try:
        observations = [one for folder in stages.folders[first:] for one in cost_model.observe(folder)]
        fitted = cost_model.fit(observations)
    except CommbenchError as error:
        console.note(f"no model: {error}; all candidates are measured")
        return None
    if fitted.r2 < _LEAST_R2:
        console.note(f"the model explains too little (r2 {fitted.r2:.3f}); all candidates are measured")
        return None
    console.note(f"model of the links: r2 {fitted.r2:.3f}")

    def predict(case: Case) -> tuple[float, float] | None:
        prediction = fitted.predict(case)
        return None if prediction is None else (prediction.low_us, prediction.high_us)

    return predict


def _counted(region: Region) -> str:
    candidates = sum(len(problem.candidates) for problem in region.problems)
    starts = f", {len(region.outers)} ways to start ranks" if len(region.outers) > 1 else ""
    sizes = len({problem.size_bytes for problem in region.problems})
    return f"{candidates} candidates at {sizes} size{'s' if sizes > 1 else ''}{starts}"


def _plan_text(regions: Sequence[Region], wish: Wish) -> list[str]:
    lines = [f"budget: {format_seconds(wish.budget_s)}; a gain below {wish.gain:.0%} is none"]
    for region in regions:
        lines.append(f"{region.default}: {_counted(region)}")
        for name in dict.fromkeys(space.label(c, region.default) for p in region.problems for c in p.candidates):
            lines.append(f"    {name}")
        default = region.problems[0].default
        lines.append(f"    against the default, {space.label(default, region.default)}")
    return lines


def _profile(tuned: Sequence[Tuned], words: Sequence[str], wish: Wish, seconds: float) -> Profile:
    if not tuned:
        raise EnvironmentProblem("nothing was tuned", hint="see the notes above")
    return Profile(
        scopes=[one.scope for one in tuned],
        choices=[choice for one in tuned for choice in one.choices],
        refused=[refused for one in tuned for refused in one.refused],
        created=timestamp(),
        commbench_version=commbench.__version__,
        machine=prepare.machine_text(metadata.collect()),
        command=["commbench", "tune", *words, f"budget={wish.budget_s:g}s"],
        minimum_gain=wish.gain,
        seconds=round(seconds, 1),
    )


def table(profile: Profile, controls: Sequence[Control]) -> list[str]:
    """The choices with their evidence, for people."""
    lines: list[str] = []
    for scope, control in zip(profile.scopes, controls, strict=True):
        lines.append(f"# {scope.id}: {scope}")
        head = ("collective", "size", "default", "us", "choice", "us", "gain", "95 % interval", "pairs")
        rows = [head]
        for choice in profile.of_scope(scope.id):
            for one in choice.evidence:
                interval = "" if one.low is None or one.high is None else f"{one.low:.3f} - {one.high:.3f}"
                chosen = choice.label + (f", {choice.buffers}" if choice.buffers != "plain" else "")
                name = choice.collective + (" captured" if choice.captured else "")
                rows.append((name, format_size(one.size_bytes), one.default, f"{one.default_us:.1f}", chosen,
                             f"{one.chosen_us:.1f}", f"{one.ratio:.3f}", interval, str(one.pairs)))  # fmt: skip
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        right = {3, 5, 6, 8}
        lines += [
            "  ".join(
                cell.rjust(width) if column in right else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += [f"# {text}" for text in _reasons(profile.of_scope(scope.id))]
        lines.append(f"# {_control_text(control)}")
        wrong = [
            one for one in profile.refused if one.scope == scope.id and one.why in ("wrong_result", "timeout", "error")
        ]
        lines += [f"# refused: {one.label}: {one.why}: {one.reason}" for one in wrong]
    return lines


def _reasons(choices: Sequence[Choice]) -> list[str]:
    return [
        f"{format_size(one.size_bytes)}: {one.verdict}"
        for choice in choices
        for one in choice.evidence
        if not one.confirmed
    ]


def _control_text(control: Control) -> str:
    known: Mapping[str, float] = {"most": control.apparent or 1.0}
    return (
        f"A-A control: the default beside itself looks up to {known['most']:.3f} times as fast; "
        f"{control.passed} of {len(control.claims)} would have been taken for a gain"
    )


def _draw(profile: Profile, folder: Path, console: Console) -> None:
    from commbench.plots import gains

    try:
        for path in gains.draw(profile, folder / "plots"):
            console.note(f"plot: {path}")
    except (OSError, ValueError) as error:
        console.note(f"no plot: {error}")
