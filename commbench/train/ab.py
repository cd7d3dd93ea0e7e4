"""Two settings of one training, launch beside launch: what the second is worth, and what was said of it before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commbench import stats
from commbench.ab import pairs
from commbench.ab.pairs import ARMS, Paired
from commbench.errors import CommbenchError, CorruptFile, UsageError
from commbench.run_folder import RunFolder, read_lines
from commbench.serialise import check_types, from_dict, parse_json
from commbench.stats import Verdict
from commbench.train import results
from commbench.train.ab_expected import from_facts

# What ab.json may have beside its arms.
_ABOUT = {
    **dict.fromkeys(("machine_text", "commbench_version", "started", "ended", "status", "verdict", "fabric"), str),
    **dict.fromkeys(("predicted", "predicted_low", "predicted_high"), float | None),
    "predicted_bias": dict[str, Any] | None,
}
_WARM_PART, _WARM_LEAST = 5, 2  # of the steps of a launch: a fifth, and two at the least, warm up


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One launch of one arm. Medians over its steps, but the first fifth of them; times of the slowest rank.

    exposed_us: what a step waited for communication, the rank that waited longest; _min_: the one that waited least.
    exposed_moe_us: what of it was expert layers'. losses: of all steps. run: its folder's name.
    waited_half_width: half the 95 % interval of `waited_part` over steps, relative; null where it is not known.
    """

    arm: str
    round: int
    tokens_per_s: float
    step_us: float
    exposed_us: float
    exposed_moe_us: float
    losses: tuple[float, ...]
    exposed_min_us: float | None = None  # null: of launches before there was this key
    run: str = ""
    waited_half_width: float | None = None

    @property
    def cost(self) -> float:
        """Return what arms are compared by."""
        return self.step_us

    @property
    def exposed_share(self) -> float:
        return self.exposed_us / self.step_us

    @property
    def waited_part(self) -> float:
        """Return the part of a step that faster exchanges of expert layers could save.

        Ranks that compute less wait longer, which faster exchanges do not change: by as much as the rank that waits
        longest in all waits longer than the one that waits least.
        """
        least = self.exposed_us if self.exposed_min_us is None else self.exposed_min_us
        return max(0.0, self.exposed_moe_us - (self.exposed_us - least)) / self.step_us


def check_steps(steps: int) -> None:
    """Raises `UsageError` for launches that would be over before they are warm."""
    if steps <= _WARM_LEAST:
        raise UsageError(f"steps={steps}: the first {_WARM_LEAST} warm up, and no other is left",
                         hint=f"{_WARM_LEAST + 1} at least; steps=20 is the default")  # fmt: skip


def launched(arm: str, number: int, lines: Sequence[Mapping[str, Any]], tokens: int, run: str = "") -> Launched:
    """Summarise metrics.jsonl, without steps under a profiler. Raises `UsageError` for too few lines.

    `tokens`: of one step.
    """
    check_steps(len(lines))
    later = lines[max(_WARM_LEAST, len(lines) // _WARM_PART) :]
    steady = [line for line in later if not line.get("profiled")] or later

    def median(key: str) -> float:
        return float(np.median([line[key] for line in steady]))

    rate = median("tokens_per_s")
    waited = [(line["exposed_moe_us"] - line["exposed_comm_us"] + line["exposed_comm_min_us"])
              * line["tokens_per_s"] / (1e6 * tokens) for line in steady]  # fmt: skip
    half_width = stats.relative_half_width(np.array(waited))
    return Launched(
        arm=arm, round=number, tokens_per_s=rate, step_us=1e6 * tokens / rate, exposed_us=median("exposed_comm_us"),
        exposed_moe_us=median("exposed_moe_us"), losses=tuple(line["loss"] for line in lines),
        exposed_min_us=median("exposed_comm_min_us"), run=run,
        waited_half_width=half_width if math.isfinite(half_width) else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """ratio: throughput of the candidate over the baseline's, low to high its 95 % interval over rounds.

    exposed: share of a step that waits for communication, by arm. losses: the largest difference between arms,
    relative to the loss; 0: identical at every step. apart: the same between launches of one arm. first, first_apart:
    both of the first step alone, before training makes differences larger.
    """

    ratio: float
    low: float | None
    high: float | None
    pairs: int  # rounds that have both arms
    exposed: Mapping[str, float]
    tokens_per_s: Mapping[str, float]
    losses: float
    apart: float
    first: float
    first_apart: float
    controlled: bool = True  # whether launches of one arm are alike

    @property
    def verdict(self) -> Verdict:
        return stats.verdict(self.low, self.high) if self.controlled else Verdict.NOT_ESTIMABLE

    @property
    def claim(self) -> bool:
        """Whether there are enough pairs to claim a gain."""
        return self.pairs >= stats.PAIRS_FOR_CLAIM


def compare(launches: Sequence[Launched], calibration: Launched | None = None, paired: Paired | None = None) -> Outcome:
    """Compare launches of both arms, at least one round of them.

    `calibration`: a launch of the baseline, for its losses alone. `paired`: what is said of their times already.
    """
    by_arm = {arm: {one.round: one for one in launches if one.arm == arm} for arm in ARMS}
    paired = paired or pairs.compare(launches, looked_at=False)
    if paired is None:
        raise CommbenchError("no round has both arms", hint="see the logs of the launches")
    losses = [[one.losses for one in by_arm[arm].values()] for arm in ARMS]
    losses[0] += [] if calibration is None else [calibration.losses]
    across = [(one, two) for one in losses[0] for two in losses[1]]
    within = [pair for arm in losses for pair in itertools.combinations(arm, 2)]
    return Outcome(
        ratio=paired.ratio.value, low=paired.ratio.low, high=paired.ratio.high, pairs=paired.rounds,
        controlled=paired.controlled,
        exposed={arm: _median(by_arm[arm].values(), "exposed_share") for arm in ARMS},
        tokens_per_s={arm: _median(by_arm[arm].values(), "tokens_per_s") for arm in ARMS},
        losses=_furthest(across),
        apart=_furthest(within),
        first=_furthest(across, steps=1),
        first_apart=_furthest(within, steps=1),
    )  # fmt: skip


def _median(launches: Any, name: str) -> float:
    return float(np.median([getattr(one, name) for one in launches]))


def _furthest(pairs: Iterable[tuple[Sequence[float], Sequence[float]]], steps: int | None = None) -> float:
    return max((_apart(one[:steps], two[:steps]) for one, two in pairs), default=0.0)


def _apart(one: Sequence[float], two: Sequence[float]) -> float:
    if len(one) != len(two):
        return math.inf
    return max((abs(a - b) / max(abs(a), 1e-300) for a, b in zip(one, two, strict=True)), default=0.0)


def _launched(line: bytes) -> Launched:
    """Return a line of launches.jsonl. Raises `ValueError`."""
    one = from_dict(Launched, parse_json(line))
    if min(one.tokens_per_s, one.step_us) <= 0 or not one.losses:
        raise ValueError("a launch has made no step")
    return one


def read(path: Path) -> tuple[list[Launched], dict[str, Any], str]:
    """Return the launches of a folder of `commbench train ab`, its ab.json, and in what its arms differ, in words.

    Raises `UsageError` for a folder of another version.
    """
    about = RunFolder(path).read_json("ab.json")
    try:
        check_types(about, {"arms": dict[str, dict[str, Any]]}, _ABOUT)
        from_facts(about)
        for arm in ARMS:
            results.check_config(about["arms"][arm])
        names = ", ".join(results.differences([about["arms"][arm] for arm in ARMS], " against "))
        launches = list(read_lines(path / "launches.jsonl", _launched))
    except (KeyError, ValueError, CorruptFile) as error:
        raise UsageError(f"{path} is of another version: {error}",
                         hint="use the commbench version that wrote it, or measure again") from error  # fmt: skip
    absent = {"machine_text": "", "commbench_version": "", "started": about.get("ended", "")}
    return launches, {**absent, **about}, names
