"""A tuning from its regions to a profile: budget, pairs for the cost model, and one tuner after the other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import commbench
from commbench import cost_model
from commbench.algorithms import outside
from commbench.collectives.base import PART_BYTES
from commbench.console import Console
from commbench.errors import CommbenchError, EnvironmentProblem, UsageError
from commbench.layout import Layout
from commbench.machine import metadata
from commbench.profile import Profile
from commbench.record.ways import is_sum, several_ways
from commbench.records import Case
from commbench.run_folder import timestamp
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.sweep import plan, prepare
from commbench.sweep.config import SweepConfig
from commbench.sweep.sizes import Sizes
from commbench.tune.confirmation import MOST_PAIRS, Confirmation
from commbench.tune.describe import count
from commbench.tune.keys import KEYS
from commbench.tune.search import Predict
from commbench.tune.space import Region
from commbench.tune.stages import Stages
from commbench.tune.tuner import CostModel, Tuned, Tuner
from commbench.units import format_seconds, parse_seconds

_LEAST_R2 = 0.9  # of a model that may rule candidates out
_PAIR_SIZES = 4
_PAIR_ROUNDS = [0, 1, 2]  # of a tournament: other pairs each, inside of nodes and between them
_OVERDRAWN = 1.05  # times the budget: told
_TIMEOUT_PART = 20  # of the budget: what one hang may cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The keys that a tuning has and a sweep has not."""

    budget_s: float  # seconds for all of it
    gain: float  # the least that is worth a change: 0.03 is 3 %
    reductions: bool = False  # of a program's trace: whether sums are tuned too


def read_limits(words: Sequence[str]) -> tuple[tuple[str, ...], Limits]:
    """Return the words without those of `Limits`, and these. Raises `UsageError`."""
    left, budget, gain, reductions = [], KEYS["budget"].default, KEYS["gain"].default, KEYS["reductions"].default
    for word in words:
        key, _, value = word.partition("=")
        if key == "budget":
            budget = value
        elif key == "reductions":
            reductions = KEYS["reductions"].read("reductions", value)
        elif key == "gain":
            try:
                gain = float(value)
            except ValueError:
                gain = -1.0
            if not 0 <= gain <= 10:
                raise UsageError(f"gain={value}", hint="the least gain that is worth a change: 0.03 is 3 %")
        else:
            left.append(word)
    return tuple(left), Limits(
        budget_s=parse_seconds("budget", budget), gain=gain, reductions=str(reductions).lower() == "true"
    )


def shorten(item: SweepConfig, limits: Limits) -> SweepConfig:
    """Return the config with a timeout by which a candidate that hangs does not take the budget with it."""
    if "timeout" in item.typed:
        return item
    return replace(item, timeout=min(item.timeout, max(5.0, limits.budget_s / _TIMEOUT_PART)))


def of_program(configs: Sequence[SweepConfig], layout: Layout, *, reductions: bool = False) -> list[SweepConfig]:
    """Return what of a recorded program can be tuned: collectives with several algorithms, on the program's own memory.

    layout: of the program's ranks. reductions: sums too, which go by a profile where that is asked for alone. Raises
    `UsageError` where there is nothing.
    """
    kept, sums = [], False
    for item in configs:
        groups = [layout.within(name) for name in item.groups]
        names = [name for name in item.collective if any(several_ways(name, each) for each in groups)]
        sums = sums or any(map(is_sum, names))
        names = [name for name in names if reductions or not is_sum(name)]
        if names:
            kept.append(replace(item, collective=names, typed=item.typed | {"buffers"}))
    if not kept:
        sent = ", ".join(dict.fromkeys(name for item in configs for name in item.collective))
        hint = "reductions=true tunes its sums, for exec --reductions" if sums else (
            f"there is one way only to do what it calls: {sent}"
        )  # fmt: skip
        raise UsageError("there is nothing to tune: the program calls no all-to-all", hint=hint)
    return kept


def tune(
    regions: Sequence[Region], configs: Sequence[SweepConfig], stages: Stages, limits: Limits, console: Console
) -> list[Tuned]:
    """Tune each region in its part of the budget that is left."""
    tuned = []
    for index, region in enumerate(regions):
        left_s = max(0.0, limits.budget_s - stages.spent_s) / (len(regions) - index)
        console.note(f"tuning {region}: {count(region)}, {format_seconds(left_s)}")
        folders = len(stages.folders)

        def fit(first: int = folders, region: Region = region) -> Predict | None:
            return _predictor(stages, first, console)

        asked = [item.launches for item in configs if "launches" in item.typed]
        launches = max([PAIRS_FOR_CLAIM, *asked])
        scope = functools.partial(stages.scope, groups=region.groups)
        tuner = Tuner(
            region, stages, budget_s=left_s, scope=scope, note=console.note,
            confirmation=Confirmation(minimum_gain=limits.gain, pairs=(launches, max(launches, MOST_PAIRS))),
            model=CostModel(probes=_pairs(region, configs), fit=fit),
        )  # fmt: skip
        tuned.append(tuner.run())
    if stages.spent_s > _OVERDRAWN * limits.budget_s:
        console.note(
            f"budget={format_seconds(limits.budget_s)} was exceeded: it took {format_seconds(stages.spent_s)}; "
            f"a confirmation is at least {PAIRS_FOR_CLAIM} launches"
        )
    return tuned


def _pairs(region: Region, configs: Sequence[SweepConfig]) -> list[Case]:
    """Return single messages between two ranks, from the smallest block to the largest buffer, to fit a model to."""
    setup = region.default
    sizes = [problem.size_bytes for problem in region.problems]
    smallest, largest = max(min(sizes) // setup.layout.ranks, PART_BYTES), max(sizes)
    steps = _PAIR_SIZES - 1
    wanted = {round(smallest * (largest / smallest) ** (step / steps)) for step in range(_PAIR_SIZES)}
    pairs: dict[str, Case] = {}
    for item in configs:
        if setup.transport not in item.transport:
            continue
        for size in sorted(wanted):
            narrow = replace(
                item, transport=[setup.transport], groups=["world"], collective=["pairs"], algorithm=["direct"],
                params={}, arguments={"round": list(_PAIR_ROUNDS)},
                layer={}, mode=["isolated"], buffers=["plain"], size_range=Sizes(size, size), typed=frozenset(),
            )  # fmt: skip
            try:
                planned = plan.expand([narrow])
            except CommbenchError:
                continue
            for one in planned:
                if not one.skip and one.case.setup.key == setup.key:
                    pairs.setdefault(one.case.case_id, one.case)
    return list(pairs.values())


def _predictor(stages: Stages, first: int, console: Console) -> Predict | None:
    """Return what the model says of cases; None where it is not good enough to rule any of them out."""
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


def to_profile(tuned: Sequence[Tuned], words: Sequence[str], limits: Limits, seconds: float) -> Profile:
    """Return the profile of all scopes. Raises `EnvironmentProblem` where there is none."""
    if not tuned:
        raise EnvironmentProblem("nothing was tuned", hint="see the notes above")
    choices = [choice for one in tuned for choice in one.choices]
    used = {(one.collective, config.algorithm) for one in choices for config in (one.config, one.on_plain) if config}
    return Profile(
        scopes=[one.scope for one in tuned],
        choices=choices,
        outside=outside.loaded(used),
        refused=[refused for one in tuned for refused in one.refused],
        created=timestamp(),
        commbench_version=commbench.__version__,
        machine=prepare.machine_text(metadata.collect()),
        command=["commbench", "tune", *words, f"budget={limits.budget_s:g}s"],
        minimum_gain=limits.gain,
        seconds=round(seconds, 1),
    )
