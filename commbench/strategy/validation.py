"""Validation: the strategies of a plan, trained by turns, beside what was predicted of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from commbench.errors import EXIT_OK, CommbenchError, UsageError
from commbench.strategy import emit
from commbench.strategy.planned import PlanRequest
from commbench.strategy.ranking import Ranked
from commbench.strategy.setting import Setting
from commbench.train import ab, config, launch, results

STEPS = 12  # of a launch; the first fifth does not count


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """What launches of one strategy took: microseconds of each launch's median step."""

    ranked: Ranked
    launches_us: tuple[float, ...]

    @property
    def us(self) -> float:
        return statistics.median(self.launches_us)

    @property
    def inside(self) -> bool:
        """Say whether that lies between the 5 and the 95 % that were predicted."""
        return self.ranked.low_us <= self.us <= self.ranked.high_us


def members(request: PlanRequest, group: Sequence[Ranked]) -> list[Ranked]:
    """Return those of the group that `commbench train` runs here. Raises `UsageError` where there are none."""
    if request.model.config is None:
        raise UsageError(f"--validate trains, and {request.model.shape.name} is no recipe of commbench train as it is",
                         hint="a recipe of ours: commbench recipes")  # fmt: skip
    found = [one for one in group if "commbench" in one.trainers]
    if not found:
        raise UsageError("--validate: commbench train runs none of the group", hint="trainer=commbench")
    return found


def train_once(
    request: PlanRequest, setting: Setting, out: Path, steps: int = STEPS, more: Sequence[str] = ()
) -> float:
    """Train once from the beginning, and return microseconds of the median step. more: further keys of the training.

    Raises `CommbenchError` where it broke.
    """
    own = f"steps={steps}", "val_every=0", "save_every=null", "breakdown_steps=0"
    words = [request.problem.model.name, *emit.train_words(request.problem, setting), *own, *more]
    ended = launch.once(launch.TrainRequest(words=tuple(words), out=out, format="none", quiet=True, plots=False))
    if ended.code != EXIT_OK:
        raise CommbenchError(f"{setting.label}: the training ended with {ended.code}",
                             hint=f"see {ended.folder}/logs", exit_code=ended.code)  # fmt: skip
    trained, _ = config.compose(words)
    return ab.launched(setting.label, 0, results.steps(ended.folder), trained.batch * trained.context).step_us


def validate(
    request: PlanRequest, group: Sequence[Ranked], budget_s: float, out: Path, say: Callable[[str], None]
) -> list[Validated]:
    """Train the strategies by turns, as long as another launch fits the budget, and each once at the least."""
    found: dict[int, list[float]] = {one.rank: [] for one in group}
    began, longest = time.monotonic(), 0.0
    while not found[group[-1].rank] or time.monotonic() - began + longest * len(group) <= budget_s:
        for one in group:
            start = time.monotonic()
            found[one.rank].append(train_once(request, one.setting, out))
            longest = max(longest, time.monotonic() - start)
            say(f"{one.setting.label}: {found[one.rank][-1] / 1e3:.4g} ms a step, predicted {one.us / 1e3:.4g}")
    return [Validated(ranked=one, launches_us=tuple(found[one.rank])) for one in group]


def sentence(validated: Sequence[Validated]) -> str:
    """Return what was found, as one sentence: how far the first choice is from the best that was measured."""
    first = next(one for one in validated if one.ranked.rank == min(other.ranked.rank for other in validated))
    best = min(validated, key=lambda one: one.us)
    regret = 100 * (first.us / best.us - 1)
    launches = min(len(one.launches_us) for one in validated)
    inside = sum(one.inside for one in validated)
    which = "the fastest of those that were trained" if best is first else (
        f"{regret:.1f} % slower than {best.ranked.setting.label}, {best.us / 1e3:.4g} ms")  # fmt: skip
    return (f"measured, {launches} of each of {len(validated)}: {first.ranked.setting.label} takes "
            f"{first.us / 1e3:.4g} ms, {which}; {inside} of {len(validated)} lie in their intervals")  # fmt: skip


def as_dict(validated: Sequence[Validated]) -> dict[str, object]:
    """Return facts of the answer's object."""
    best = min(one.us for one in validated)
    return {"regret": min(validated, key=lambda one: one.ranked.rank).us / best - 1,
            "launches": [{"rank": one.ranked.rank, "strategy": one.ranked.setting.label,
                          "step_ms": [us / 1e3 for us in one.launches_us], "inside": one.inside}
                         for one in validated]}  # fmt: skip
