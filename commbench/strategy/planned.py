"""What was typed of `commbench plan`, as a problem and as what is wanted of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commbench.errors import UsageError
from commbench.strategy import clusters, emit, models
from commbench.strategy.call_table import read_calls
from commbench.strategy.choices import planning
from commbench.strategy.cluster import GpuCluster
from commbench.strategy.draws import Efficiency
from commbench.strategy.gemm_table import read_gemm
from commbench.strategy.keys import AXES, read_words
from commbench.strategy.known import GPUS
from commbench.strategy.models import PlannedModel
from commbench.strategy.ranking import PlanProblem, Ranked
from commbench.strategy.setting import EXCHANGES, RECOMPUTE, SCHEDULES, Setting, Settings
from commbench.strategy.tagged import Tagged
from commbench.strategy.uneven import read_uneven

REACH = 8  # times the GPUs that links were measured with
_SIZES = ("tp", "cp", "pp", "vpp", "ep", "etp", "micro_batch", "mb", "zero")
_HINT = "for example current=tp2,pp4,ep8,micro_batch1,overlap_1f1b,redo"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A problem, and what runs now, None where nobody says. model: with its recipe."""

    problem: PlanProblem
    model: PlannedModel
    current: Setting | None
    notes: tuple[str, ...]
    words: tuple[str, ...] = ()  # as they were typed
    budget_s: float = 600.0  # for launches of a validation


def read(words: Sequence[str], *, extrapolate: bool = False) -> PlanRequest:
    """Read [MODEL] [KEY=VALUE ...]. Raises `UsageError`.

    extrapolate: whether a cluster may be more than `REACH` times as large as what its links were measured on.
    """
    name, rest = models.choices(words)
    typed = read_words(rest)
    model = models.read_model(name, typed)
    if model.config is not None:
        typed = _of_recipe(model, typed)
    cluster = clusters.read_cluster(typed)
    _within_reach(cluster, extrapolate)
    problem = PlanProblem(
        model=model.shape,
        work=model.work,
        cluster=cluster,
        axes={axis: typed[axis] for axis in AXES if typed.get(axis)},
        trainer=typed.get("trainer", "any"),
        uneven=read_uneven(model.shape, typed),
        table=None if typed.get("gemm") is None else read_gemm(Path(typed["gemm"])),
        calls=None if typed.get("calls") is None else read_calls(Path(typed["calls"]), typed.get("seed", 0)),
        efficiency=_efficiency(typed),
        seed=typed.get("seed", 0),
        host_gbs=float(typed.get("host_gbs") or 0.0),
    )
    current = None if typed.get("current") is None else read_current(typed["current"], problem)
    if (ms := typed.get("current_ms")) is not None:
        problem = _scaled(problem, current, float(ms))
    return PlanRequest(problem=problem, model=model, current=current, notes=model.notes,
                       words=tuple(words), budget_s=typed.get("budget", 600.0))  # fmt: skip


def _efficiency(typed: Mapping[str, Any]) -> Efficiency:
    """Return what processors reach: of the GPU's name, and what was typed in place of it."""
    found = Efficiency() if typed.get("gpu") is None else GPUS[typed["gpu"]].efficiency
    if (part := typed.get("efficiency")) is not None:
        found = found._replace(gemm=Tagged(float(part), "declared"))
    if (us := typed.get("launch_us")) is not None:
        found = found._replace(launch_us=Tagged(float(us), "declared"))
    if (us := typed.get("step_us")) is not None:
        found = found._replace(step_us=Tagged(float(us), "declared"))
    return found


def _scaled(problem: PlanProblem, current: Setting | None, ms: float) -> PlanProblem:
    """Return the problem with all steps so many times as long that the one that runs now takes what it takes."""
    if current is None:
        raise UsageError(f"current_ms={ms:g} of nothing", hint=f"say what takes that: {_HINT.removeprefix('for ')}")
    us = float(problem.times(Settings.of([current]), problem.draw(1)).us[0, 0])
    its = problem.efficiency or Efficiency()
    missed = Tagged(its.missed.value * 1e3 * ms / us, "measured", its.missed.factor)
    return dataclasses.replace(problem, efficiency=its._replace(missed=missed))


def _of_recipe(model: PlannedModel, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys with the nodes that a recipe of ours names, where neither a file nor a key does."""
    config = model.config
    assert config is not None
    found = dict(typed)
    if found.get("cluster") is None and found.get("gpu") is None:
        found = {"nodes": config.nodes, "gpus_per_node": config.ranks_per_node, **found}
        if config.peak_tflops is not None:
            found.setdefault("peak_tflops", config.peak_tflops)
    return found


def _within_reach(cluster: GpuCluster, extrapolate: bool) -> None:
    measured = cluster.measured_gpus
    if measured and cluster.gpus > REACH * measured and not extrapolate:
        raise UsageError(
            f"{cluster.gpus} GPUs are {cluster.gpus / measured:.3g} times the {measured} that costs were measured on",
            hint=f"plan for {REACH * measured} GPUs at the most, measure on more, or --extrapolate all the same",
        )


def read_current(text: str, problem: PlanProblem) -> Setting:
    """Return the setting of `tp2,pp4,ep8,micro_batch1,sequential`. Raises `UsageError`."""
    values: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([a-z_]+?):?(\d+)", word)
        if match and match[1] in _SIZES:
            values["micro_batch" if match[1] == "mb" else match[1]] = int(match[2])
        elif word in EXCHANGES:
            values["exchange"] = word
        elif word in RECOMPUTE:
            values["recompute"] = word
        elif found := [one for one in SCHEDULES if word in (one.label, one.name)]:
            values["schedule"] = found[0]
        else:
            raise UsageError(f"current={text}: {word!r} is no size, schedule, exchange or recompute", hint=_HINT)
    gpus = problem.cluster.gpus
    sizes = {name: values.get(name, 1) for name in ("tp", "cp", "pp", "ep", "etp")}
    stage = sizes["tp"] * sizes["cp"] * sizes["pp"]
    experts = sizes["ep"] * sizes["etp"] * sizes["pp"]
    for number, what in ((stage, "tp x cp x pp"), (experts, "ep x etp x pp")):
        if min(sizes.values()) < 1 or gpus % number:
            raise UsageError(f"current={text}: {what} is {number}, which does not divide the {gpus} GPUs", hint=_HINT)
    setting = Setting(**{"zero": 1, **values}, dp=gpus // stage, edp=gpus // experts)
    if problem.model.experts % setting.ep or problem.model.heads % setting.tp:
        sizes_of = f"experts={problem.model.experts} by ep or heads={problem.model.heads} by tp"
        raise UsageError(f"current={text} does not divide {sizes_of}", hint=_HINT)
    if setting.micro_batch < 1 or problem.work.batch % (setting.dp * setting.micro_batch):
        raise UsageError(f"current={text}: batch={problem.work.batch} does not divide into micro-batches of "
                         f"{setting.micro_batch} on dp={setting.dp}", hint=_HINT)  # fmt: skip
    return setting


def commands(request: PlanRequest, group: Sequence[Ranked]) -> list[str]:
    """Return what to type to know more: of links that nobody measured, then of the group, a line each."""
    problem, found = request.problem, []
    cluster = problem.cluster
    if cluster.costs is None and cluster.nodes > 1:
        where = f"transport=nccl nodes={min(cluster.nodes, 4)} ranks_per_node={cluster.gpus_per_node}"
        found.append(f"commbench sweep pairs {where} && commbench model results/latest --out costs.json")
    for one in group if len(group) > 1 or request.model.config is not None else []:
        if "commbench" in one.trainers and request.model.config is not None:
            found.append(emit.commbench(problem, one.setting, request.model.config))
        elif "megatron" in one.trainers:
            found.append(planning(request.words, one.setting))
    return found
