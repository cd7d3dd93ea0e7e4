"""The space of strategies: which settings there are for a model on a cluster, before memory and time are asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from commbench.errors import UsageError
from commbench.strategy.cluster import GpuCluster
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.setting import DROP, DUPLICATE, EXCHANGES, RECOMPUTE, SCHEDULES, SPLIT, Settings
from commbench.strategy.trainers import run_by
from commbench.strategy.workload import Workload

MICRO_BATCHES, PARTS_OF_STAGES = (1, 2, 4, 8), (1, 2, 4)
_LEAST_CONTEXT = 4096  # tokens of a sequence that a rank has, at the least, with context parallelism
_GATHERS = 16  # ranks that gather all tokens of each other, at the most
_COLUMNS = ("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp", "micro_batch", "zero", "schedule", "exchange",
            "recompute")  # fmt: skip
_SEQUENTIAL = 0
Axes = Mapping[str, Sequence[Any]]


def settings(model: ModelShape, work: Workload, cluster: GpuCluster, axes: Axes, trainer: str = "any") -> Settings:
    """Return all settings that sizes allow and a trainer can run. axes: what a user asked of columns.

    Raises `UsageError` where no sizes divide; it says which of those that were asked does not, and what does.
    """
    rows = [row for sizes in _parallel(model, work, cluster, axes) for row in _inner(model, work, cluster, axes, sizes)]
    if not rows:
        message, hint = _why_none(model, work, cluster, axes)
        raise UsageError(message, hint=hint)
    columns = np.array(rows, dtype=np.int64)
    found = Settings(**{name: columns[:, place] for place, name in enumerate(_COLUMNS)})
    found = found.take(run_by(found, trainer, cluster.gpus))
    if not len(found):
        raise UsageError(f"trainer={trainer} runs none of the {len(rows)} strategies that sizes allow",
                         hint="trainer=any, or fewer keys of the space (tp=.., pp=.., schedule=..)")  # fmt: skip
    return found


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _asked(axes: Axes, name: str, values: Sequence[int]) -> list[int]:
    wanted = axes.get(name)
    return [value for value in values if wanted is None or value in wanted]


def _parallel(model: ModelShape, work: Workload, cluster: GpuCluster, axes: Axes) -> Iterator[tuple[int, ...]]:
    """List tp, cp, dp, pp, ep, etp, edp."""
    moe = bool(model.moe_layers)
    for pp in _asked(axes, "pp", [one for one in _divisors(cluster.gpus) if one <= model.layers]):
        of_stage = cluster.gpus // pp
        tps = [one for one in _divisors(of_stage) if one <= cluster.gpus_per_node and not cluster.gpus_per_node % one
               and not model.heads % one and not model.hidden % one]  # fmt: skip
        for tp in _asked(axes, "tp", tps):
            asked = "cp" in axes
            cps = [
                one for one in _divisors(of_stage // tp) if _cuts(model.context, one, 1 if asked else _LEAST_CONTEXT)
            ]
            for cp in _asked(axes, "cp", cps):
                dp = of_stage // tp // cp
                if work.batch % dp:
                    continue
                for etp in _asked(axes, "etp", sorted({1, tp}) if moe and not model.expert_hidden % tp else [1]):
                    if of_stage % etp:
                        continue
                    eps = [one for one in _divisors(of_stage // etp) if not model.experts % one] if moe else [1]
                    for ep in _asked(axes, "ep", eps):
                        yield tp, cp, dp, pp, ep, etp, of_stage // etp // ep


def _cuts(context: int, cp: int, least: int) -> bool:
    """Return whether a sequence can be cut so: two parts for each rank, which balances causal scores."""
    return cp == 1 or (context % (2 * cp) == 0 and context // cp >= least)


def _inner(
    model: ModelShape, work: Workload, cluster: GpuCluster, axes: Axes, sizes: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    tp, cp, dp, pp, ep, etp, edp = sizes
    # A micro-batch of a recipe of ours is what a rank's part has, which may be any number.
    own = work.batch // dp
    batches = sorted({*MICRO_BATCHES, own} if own <= 64 else set(MICRO_BATCHES))
    schedules = _schedules(model, axes, sizes)
    # ZeRO-1 sends as many bytes as none of it, so that is asked for by name alone.
    zeros = axes.get("zero") or ((0,) if dp * cp * edp == 1 else (1, 3))
    recompute = [RECOMPUTE.index(one) for one in axes.get("recompute") or RECOMPUTE]
    for micro_batch in axes.get("micro_batch") or [one for one in batches if not own % one]:
        if own % micro_batch:
            continue
        count = own // micro_batch
        for vpp in _asked(axes, "vpp", PARTS_OF_STAGES):
            if vpp > 1 and (pp == 1 or model.layers % (pp * vpp) or count % pp):
                continue
            for schedule in schedules:
                if SCHEDULES[schedule].name == "overlap_1f1b" and (count < 2 or (pp > 1 and vpp == 1)):
                    continue
                for exchange in _exchanges(model, cluster, axes, sizes, schedule):
                    for zero in zeros:
                        for how in recompute:
                            yield (tp, cp, dp, pp, vpp, ep, etp, edp, micro_batch, zero, schedule, exchange, how)


def _schedules(model: ModelShape, axes: Axes, sizes: tuple[int, ...]) -> list[int]:
    tp, _, _, _, ep, etp, _ = sizes
    found = []
    for place, one in enumerate(SCHEDULES):
        if axes.get("schedule") and one.name not in axes["schedule"]:
            continue
        if place != _SEQUENTIAL and ep * etp == 1:
            continue
        if one.tokens == DUPLICATE and (etp != tp or tp == 1):
            continue
        if one.tokens == DROP and (tp == 1 or (one.name.startswith("parm") and etp != tp)):
            continue
        if one.tokens == SPLIT and place != _SEQUENTIAL and ep == 1:
            continue
        if one.name == "expert_groups" and (model.experts // ep) % one.chunks:
            continue
        found.append(place)
    return found


def _exchanges(model: ModelShape, cluster: GpuCluster, axes: Axes, sizes: tuple[int, ...], schedule: int) -> list[int]:
    _, _, _, _, ep, etp, _ = sizes
    wanted = axes.get("exchange") or EXCHANGES
    near = min(ep, max(cluster.gpus_per_node // etp, 1))
    levels = near > 1 and ep > near
    allowed = ["per_choice"]
    if ep > 1 and SCHEDULES[schedule].tokens == SPLIT:
        allowed += ["2d_intra_first"] if levels else []
        if model.top_k > 1 and not model.capacity_factor:
            allowed += ["per_rank", *(["per_node"] if levels else []), *(["all_gather"] if ep <= _GATHERS else [])]
    return [EXCHANGES.index(one) for one in wanted if one in allowed]


def _why_none(model: ModelShape, work: Workload, cluster: GpuCluster, axes: Axes) -> tuple[str, str]:
    """Say which size does not divide, and what does."""
    gpus = cluster.gpus
    for name, of, what in (
        ("pp", gpus, f"the {gpus} GPUs of the cluster"), ("tp", gpus, f"the {gpus} GPUs of the cluster"),
        ("tp", cluster.gpus_per_node, f"the {cluster.gpus_per_node} GPUs of a node"),
        ("tp", model.heads, f"heads={model.heads}"), ("tp", model.hidden, f"hidden={model.hidden}"),
        ("cp", gpus, f"the {gpus} GPUs of the cluster"), ("ep", gpus, f"the {gpus} GPUs of the cluster"),
        ("ep", model.experts, f"experts={model.experts}"), ("micro_batch", work.batch, f"batch={work.batch}"),
    ):  # fmt: skip
        asked = list(axes.get(name) or ())
        if asked and all(of % one for one in asked):
            return f"{name}={','.join(map(str, asked))} does not divide {what}", f"of those that do: {_some(of)}"
    if axes:
        said = " ".join(f"{name}={','.join(map(str, values))}" for name, values in axes.items())
        return (
            f"no strategy for {gpus} GPUs and batch={work.batch} has {said}",
            "ask for less of it, or for other sizes",
        )
    return (f"batch={work.batch} sequences do not divide among {gpus} GPUs in any strategy",
            f"batch=N, a multiple of {gpus} say")  # fmt: skip


def _some(number: int) -> str:
    found = _divisors(number)
    return ", ".join(map(str, found[:12])) + (", .." if len(found) > 12 else "")
