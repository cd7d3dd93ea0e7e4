"""What a check measures: every pair of ranks at two sizes, and the all-to-all twice, as often as the budget allows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from commbench import transports
from commbench.analysis.pair_matrices import COLLECTIVE as PAIRS
from commbench.errors import UsageError
from commbench.launch import slurm
from commbench.machine import gpus
from commbench.rank_info import RankInfo
from commbench.records import Case, PlannedCase
from commbench.stats import LAUNCHES_FOR_INTERVAL
from commbench.sweep import prepare
from commbench.sweep.config import SweepConfig
from commbench.sweep.sizes import Sizes
from commbench.units import format_seconds

RECIPE = "check"
ALL_TO_ALL = "all_to_all"
MOST_LAUNCHES = 20
REPEATS = LAUNCHES_FOR_INTERVAL  # of all, in the one launch of ranks that somebody else has started
_GPU_SIZES = {"sizes.max": "64M"}
_START_S, _CASE_S = 2.5, 0.05  # of a launch, and of a case beside its samples
_LEAST_CAP_S, _MOST_CAP_S = 0.02, 1.0
_CONTROL, _CONTROL_SAMPLES = 5, 10  # times the cap of a pair; samples, at least
_SEEDS = 2**63


def words(typed: Sequence[str], rank: RankInfo | None = None) -> tuple[str, ...]:
    """Return the words of the sweep that a check is: its recipe, what is typed, and what follows from where it runs.

    They leave the layout open: see `layout`.
    """
    keys = {word.partition("=")[0]: word.partition("=")[2] for word in typed}
    more: dict[str, str] = {}
    if "transport" not in keys and rank is not None and rank.launcher == "mpiexec":
        more["transport"] = "mpi"
    elif "transport" not in keys and _on_gpus():
        more["transport"] = "nccl"
    if {**keys, **more}.get("transport") == "nccl":
        more |= {name: value for name, value in _GPU_SIZES.items() if name not in keys}
    return (RECIPE, *(f"{name}={value}" for name, value in more.items()), *typed)


def layout(of_sweep: Sequence[str], rank: RankInfo | None) -> dict[str, int]:
    """Return nodes and ranks_per_node where nobody types them: those of a launcher or of an allocation, and GPUs."""
    if rank is not None:
        return prepare.layout_of(rank)
    found = {"nodes": max(1, slurm.allocated_nodes(os.environ))}
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE", "") if found["nodes"] > 1 else ""
    if "transport=nccl" in of_sweep and (count := gpus.count(os.environ)):
        found["ranks_per_node"] = count
    elif per_node.isdecimal():
        found["ranks_per_node"] = int(per_node)
    return found


def _on_gpus() -> bool:
    return gpus.count(os.environ) > 1 and not transports.missing("nccl")


def expand(configs: Sequence[SweepConfig], budget_s: float, *, joined: bool = False) -> list[PlannedCase]:
    """Return the plan. joined: ranks are started already, and all is measured in their one launch.

    Raises `UsageError` where nothing can run, or more than one set-up is asked for.
    """
    ends = [replace(item, size_range=_two(item.size_range)) for item in configs]
    planned = prepare.expand(ends)
    setups = {item.case.setup.key for item in planned}
    if len(setups) != 1:
        raise UsageError(f"a check is of one set-up, and these keys make {len(setups)}", hint="one value for each key")
    kept = [item for item in planned if item.case.collective == PAIRS or item.case.size_bytes == _largest(planned)]
    kept += [replace(item, case=_again(item.case, 1)) for item in kept if item.case.collective == ALL_TO_ALL]
    typed = frozenset[str]().union(*(item.typed for item in configs))
    policy = _policy(len(kept), budget_s, typed, joined=joined)
    kept = [replace(item, case=_lasting(item.case, policy, typed)) for item in kept]
    repeats = REPEATS if joined else 1
    return [
        replace(item, case=_again(item.case, 2 * number)) if number else item
        for number in range(repeats)
        for item in kept
    ]


def _two(sizes: Sizes) -> Sizes:
    """Return the smallest size and the largest one."""
    return Sizes(sizes.min, sizes.max, given=tuple(sorted({sizes.min, sizes.max})))


def _largest(planned: Sequence[PlannedCase]) -> int:
    return max(item.case.size_bytes for item in planned if item.case.collective == ALL_TO_ALL)


def _again(case: Case, number: int) -> Case:
    """Return the same case as one of its own: with other data."""
    return replace(case, seed=(case.seed + number) % _SEEDS)


def arm(case: Case, first_seed: int) -> int:
    """Return which of the two arms of the A-A control an all-to-all is in: 0 or 1."""
    return (case.seed - first_seed) % _SEEDS % 2


def _policy(cases: int, budget_s: float, typed: frozenset[str], *, joined: bool) -> Mapping[str, Any]:
    """Return how long and how often each case is measured, as far as nobody types it."""
    each_s = budget_s / LAUNCHES_FOR_INTERVAL - (0 if joined else _START_S)
    cap_s = min(max(each_s / cases - _CASE_S, _LEAST_CAP_S), _MOST_CAP_S)
    found: dict[str, Any] = {} if "cap" in typed else {"cap_s": cap_s}
    if "launches" not in typed and not joined:
        found["launches"] = MOST_LAUNCHES
    return found


def _lasting(case: Case, policy: Mapping[str, Any], typed: frozenset[str]) -> Case:
    """Return the case with its policy. The two arms of the control are few, and take more samples for it."""
    more = dict(policy)
    if case.collective == ALL_TO_ALL and "cap_s" in more:
        more["cap_s"] *= _CONTROL
    if case.collective == ALL_TO_ALL and "samples.min" not in typed:
        more["samples_min"] = min(_CONTROL_SAMPLES, case.policy.samples_max)
    return replace(case, policy=replace(case.policy, **more))


def short(planned: Sequence[PlannedCase], budget_s: float, *, joined: bool) -> str:
    """Return that the budget is too short for so many ranks, in words; "" where it is not."""
    runnable = [item.case for item in planned if not item.skip]
    least_s = len(runnable) * (_CASE_S + _LEAST_CAP_S)
    least_s = least_s if joined else LAUNCHES_FOR_INTERVAL * (least_s + _START_S)
    if least_s <= budget_s:
        return ""
    ranks = runnable[0].setup.layout.ranks
    return f"budget={format_seconds(budget_s)} is short for {ranks} ranks: it takes about {format_seconds(least_s)}"
