"""From keys to cases, and from cases to launches. Pure: the same recipe and seed give the same plan."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from commbench import algorithms, collectives, transports
from commbench.algorithms.base import Algorithm
from commbench.collectives.base import Collective
from commbench.emulated import ROUTINGS, Emulated
from commbench.records import Case, PlannedCase, Policy, Setup
from commbench.spec import DTYPES, Arguments
from commbench.sweep import checks
from commbench.sweep.config import SweepConfig
from commbench.units import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One start of a process group and the cases that it measures, in this order."""

    index: int  # the round: 0 .. launches - 1
    setup: Setup
    cases: tuple[Case, ...]


def expand(configs: Iterable[SweepConfig]) -> list[PlannedCase]:
    """Return every combination of the axes, without duplicates (sizes that round to the same one are one case)."""
    planned: dict[str, PlannedCase] = {}
    configs = list(configs)
    for config in configs:
        for item in _cases(config):
            planned.setdefault(item.case.case_id, item)
    checks.reject_idle_keys(configs, list(planned.values()))
    return list(planned.values())


def _cases(config: SweepConfig) -> Iterator[PlannedCase]:
    policy = Policy(
        warmup=config.warmup,
        iters=config.iters,
        samples_min=config.samples_min,
        samples_max=config.samples_max,
        precision=config.precision,
        cap_s=config.cap,
        launches=config.launches,
    )
    wanted = list(collectives.EVERY) if "all" in config.collective else config.collective
    checks.reject_unknown_algorithms(config, wanted)
    for setup in setups(config):
        for name, groups, dtype in itertools.product(wanted, config.groups, config.dtype):
            sizes = _sizes(config, collectives.get(name), setup, groups, dtype)
            for in_place, overlap, mode, buffers, cache in itertools.product(
                config.in_place, config.overlap, config.mode, config.buffers, config.cache
            ):
                for algorithm, params in _with_params(config, name):
                    if _pointless(config, setup, algorithms.get(name, algorithm), buffers):
                        continue
                    demands = algorithms.get(name, algorithm).demands
                    implied = {key: value for key, value in demands.items() if key not in config.arguments}
                    for size, arguments, reason in sizes:
                        case = Case(
                            setup=setup,
                            collective=name,
                            algorithm=algorithm,
                            params=params,
                            arguments={**arguments, **implied},
                            in_place=in_place,
                            groups=groups,
                            overlap=overlap,
                            mode=mode,
                            buffers=buffers,
                            cache=cache,
                            dtype=dtype,
                            size_bytes=size,
                            seed=config.seed,
                            policy=policy,
                        )
                        yield PlannedCase(case=case, skip=reason or checks.skip_reason(case))


def _pointless(config: SweepConfig, setup: Setup, algorithm: Algorithm, buffers: str) -> bool:
    """Return whether nobody means this: it would be skipped, and readers of the results would have to skip it."""
    if not algorithm.one_sided:
        return False
    unwanted = "all" in config.algorithm and not transports.entry(setup.transport).one_sided
    return unwanted or (buffers != "symmetric" and "symmetric" in config.buffers)


def setups(config: SweepConfig) -> Iterator[Setup]:
    """Yield the set-ups of a config."""
    shapes: list[tuple[int, ...]] = [tuple(map(int, text.split("x"))) for text in config.layout]
    shapes = shapes or list(itertools.product(config.nodes, config.ranks_per_node))
    for transport, (nodes, ranks_per_node) in itertools.product(config.transport, shapes):
        checks.reject_too_many_ranks(nodes, ranks_per_node)
        fabrics = [(emulated, False) for emulated in _fabrics(config, nodes, ranks_per_node)]
        fabrics += [(None, True)] if "virtual" in config.fabric else []
        env = itertools.product(*config.env.values())
        for (emulated, virtual), values, policy in itertools.product(fabrics, env, config.binding):
            yield Setup(
                transport=transport,
                nodes=nodes,
                ranks_per_node=ranks_per_node,
                env=dict(zip(config.env, values, strict=True)),
                script=config.script if transport == "scripted" else "",
                emulated=emulated,
                virtual_hosts=virtual,
                binding=policy,
                cpu_masks=config.cpu_masks if policy == "explicit" else "",
                binding_memory=config.binding_memory or policy == "none",
            )


def _fabrics(config: SweepConfig, nodes: int, ranks_per_node: int) -> Iterator[Emulated | None]:
    """Yield the emulated fabrics, None for the real one."""
    if "real" in config.fabric:
        yield None
    if "emulated" not in config.fabric:
        return
    for link, overhead, spines, inside, slow, rate in itertools.product(
        config.link, config.message_overhead, config.spines, config.intra_link, config.slow_link, config.spine_rate
    ):
        # One spine leaves nothing to route.
        for routing in config.routing if spines > 1 else ROUTINGS[:1]:
            yield Emulated(
                nodes=nodes,
                link=link,
                message_overhead=overhead,
                spines=spines,
                routing=routing,
                intra_link="" if inside == "none" else inside,
                slow_link="" if slow == "none" else slow,
                spine_rate="" if rate == "none" else rate,
                places=1 if rate == "none" else ranks_per_node,
            )


def _sizes(
    config: SweepConfig, collective: Collective, setup: Setup, groups: str, dtype: str
) -> list[tuple[int, Arguments, str]]:
    """Return (size, arguments, why not): rounded, unique, ascending; a size that cannot be has a reason."""
    layout, unsupported = setup.layout, setup.layout.unsupported(groups)
    axes = {key: config.arguments.get(key, [item.default]) for key, item in collective.arguments.items()}
    sizes: dict[str, tuple[int, Arguments, str]] = {}
    for values in itertools.product(*axes.values()):
        given = {key: value for key, value in zip(axes, values, strict=True) if value is not None}
        each = [given] if unsupported else collective.variants(given, layout.within(groups))
        for asked, (size, implied) in itertools.product(each, _asked_sizes(config, collective, dtype)):
            checks.reject_too_large(collective.name, size)
            try:
                settled = (*collective.settle(size, layout.within(groups), {**implied, **asked}), "")
            except ValueError as error:
                settled = (0, {**implied, **asked}, str(error))
            checks.reject_too_large(collective.name, settled[0])
            sizes.setdefault(repr(settled), settled)
    return sorted(sizes.values(), key=lambda item: item[0])


def _asked_sizes(config: SweepConfig, collective: Collective, dtype: str) -> Iterator[tuple[int, Arguments]]:
    """Yield bytes, and what they imply for a collective that knows tokens: a token's and a rank's bytes."""
    knows_tokens = "row_bytes" in collective.arguments
    rows = [dim * DTYPES[dtype] for dim in config.layer.get("model_dim", [])]
    if collective.routed:
        yield from _routed_sizes(config, rows)
        return
    if "tokens" not in config.layer:
        for size, row in itertools.product(config.sizes, rows or [0]):
            yield size, {"row_bytes": row} if row and knows_tokens else {}
        return
    for tokens, row, top_k in itertools.product(config.layer["tokens"], rows, config.layer["top_k"]):
        size = tokens * top_k * row
        yield size, {"row_bytes": row, "send_bytes": size} if knows_tokens else {}


def _routed_sizes(config: SweepConfig, rows: Sequence[int]) -> Iterator[tuple[int, Arguments]]:
    """Yield bytes of a rank's tokens, before they are routed, and what they imply."""
    for row, top_k in itertools.product(rows or [0], config.layer.get("top_k", [0])):
        implied = {**({"row_bytes": row} if row else {}), **({"top_k": top_k} if top_k else {})}
        for size in [tokens * row for tokens in config.layer.get("tokens", [])] or config.sizes:
            yield size, implied


def _with_params(config: SweepConfig, collective: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield (algorithm, parameters) of one collective."""
    for name in algorithms.names(collective):
        if name in config.algorithm or "all" in config.algorithm:
            params = algorithms.get(collective, name).params
            axes = {key: config.params.get(key, [default]) for key, (default, _) in params.items()}
            for values in itertools.product(*axes.values()):
                yield name, dict(zip(axes, values, strict=True))


def launches(planned: Sequence[PlannedCase], *, seed: int) -> Iterator[Launch]:
    """Yield all launches in the order in which they run.

    Round by round, so that slow drift meets every set-up alike; within a launch the cases are in an order drawn
    from the seed, and within a round the set-ups are, too: every second round has the reverse of the one before,
    so that each of two that are compared comes first as often as the other.
    """
    by_setup: dict[str, list[Case]] = {}
    for item in planned:
        if not item.skip:
            by_setup.setdefault(item.case.setup.key, []).append(item.case)
    rounds = max((case.policy.launches for cases in by_setup.values() for case in cases), default=0)
    for index in range(rounds):
        setups = list(by_setup)
        random.Random(f"{seed}/{index - index % 2}").shuffle(setups)
        if index % 2:
            setups.reverse()
        for key in setups:
            cases = [case for case in by_setup[key] if index < case.policy.launches]
            random.Random(f"{seed}/{index}/{key}").shuffle(cases)
            if cases:
                yield Launch(index=index, setup=cases[0].setup, cases=tuple(cases))


def estimate_s(planned: Sequence[PlannedCase]) -> float:
    """Guess the whole run's seconds: every measurement takes its cap at the most, and each launch starts."""
    runnable = [item.case for item in planned if not item.skip]
    per_launch = {item.setup.key: item.policy.launches for item in runnable}
    return sum(case.policy.cap_s * case.policy.launches for case in runnable) + 3.0 * sum(per_launch.values())


def _axes(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Return what else tells the cases apart, or is not the default."""
    axes = {
        "collectives": {case.collective for case in cases},
        "dtypes": {case.dtype for case in cases},
        "modes": {case.mode for case in cases},
        "asked": {
            f"{key}={value}"
            for case in cases
            for key, value in case.arguments.items()
            if key not in ("matrix", "send_bytes")
        },
        "groups": {case.groups for case in cases} - {"world"},
        "overlap": {case.overlap for case in cases} - {"none"},
        "in place": {"yes" for case in cases if case.in_place},
    }
    return {name: sorted(values) for name, values in axes.items() if values}


def describe(planned: Sequence[PlannedCase]) -> list[str]:
    """Return the plan in a few lines of words."""
    runnable = [item.case for item in planned if not item.skip]
    if not runnable:
        return ["no case can run"]
    sizes = sorted({case.size_bytes for case in runnable})
    setups = {case.setup.key: case.setup for case in runnable}
    names = sorted({case.label for case in runnable})
    lines = [
        f"{len(runnable)} cases, {len(planned) - len(runnable)} skipped; "
        f"{len(setups)} set-up{'s' if len(setups) > 1 else ''} x {runnable[0].policy.launches} launches",
        f"sizes: {len(sizes)} from {format_size(sizes[0])} to {format_size(sizes[-1])}",
        f"algorithms: {', '.join(names)}",
        *(f"{what}: {', '.join(values)}" for what, values in _axes(runnable).items()),
    ]
    lines += [f"set-up: {setup}" for setup in list(setups.values())[:8]]
    if len(setups) > 8:
        lines.append(f"set-up: and {len(setups) - 8} more")
    return lines
