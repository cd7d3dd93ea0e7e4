"""From keys to cases, and from cases to launches. Pure: the same recipe and seed give the same plan."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from commbench import algorithms, collectives, transports
from commbench.config import SweepConfig
from commbench.errors import UsageError
from commbench.records import Case, Outer, Policy
from commbench.units import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCase:
    case: Case
    skip: str = ""  # why it cannot run, if so


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One start of a process group and the cases that it measures, in this order."""

    index: int  # the round: 0 .. launches - 1
    outer: Outer
    cases: tuple[Case, ...]


def expand(configs: Iterable[SweepConfig]) -> list[PlannedCase]:
    """Every combination of the axes, without duplicates (sizes that round to the same one are one case)."""
    planned: dict[str, PlannedCase] = {}
    for config in configs:
        _reject_idle_params(config)
        for case in _cases(config):
            planned.setdefault(case.case_id, PlannedCase(case=case, skip=_skip_reason(case)))
    return list(planned.values())


def _cases(config: SweepConfig) -> Iterator[Case]:
    policy = Policy(
        warmup=config.warmup,
        iters=config.iters,
        samples_min=config.samples_min,
        samples_max=config.samples_max,
        precision=config.precision,
        cap_s=config.cap,
        launches=config.launches,
    )
    for outer in _outers(config):
        for collective, dtype, mode, buffers, cache in itertools.product(
            config.collective, config.dtype, config.mode, config.buffers, config.cache
        ):
            sizes = _sizes(config, collective, outer.layout.ranks)
            for name, params in _ways(config, collective):
                for size in sizes:
                    yield Case(
                        outer=outer,
                        collective=collective,
                        algorithm=name,
                        params=params,
                        mode=mode,
                        buffers=buffers,
                        cache=cache,
                        dtype=dtype,
                        size_bytes=size,
                        seed=config.seed,
                        policy=policy,
                    )


def _outers(config: SweepConfig) -> Iterator[Outer]:
    for transport, nodes, ranks_per_node in itertools.product(config.transport, config.nodes, config.ranks_per_node):
        for values in itertools.product(*config.env.values()):
            yield Outer(
                transport=transport,
                nodes=nodes,
                ranks_per_node=ranks_per_node,
                env=dict(zip(config.env, values, strict=True)),
                script=config.script if transport == "scripted" else "",
            )


def _sizes(config: SweepConfig, collective: str, ranks: int) -> list[int]:
    """Rounded, unique, ascending. A size that rounds down to nothing stays as 0 and is skipped with a reason."""
    round_size = collectives.get(collective).round_size
    return sorted({round_size(size, ranks) for size in config.sizes})


def _ways(config: SweepConfig, collective: str) -> Iterator[tuple[str, dict[str, int]]]:
    """(algorithm, parameters) of one collective."""
    wanted = algorithms.names(collective) if "all" in config.algorithm else config.algorithm
    for name in wanted:
        algorithm = algorithms.get(collective, name)
        axes = {key: config.params.get(key, [default]) for key, (default, _) in algorithm.params.items()}
        for values in itertools.product(*axes.values()):
            yield name, dict(zip(axes, values, strict=True))


def _reject_idle_params(config: SweepConfig) -> None:
    """A setting that would silently have no effect is a mistake."""
    for key in config.params:
        takers = [name for (_, name), algorithm in algorithms.TABLE.items() if key in algorithm.params]
        if "all" not in config.algorithm and not set(takers) & set(config.algorithm):
            raise UsageError(
                f"{key} is set, but no algorithm of this sweep takes it", hint=f"it belongs to {', '.join(takers)}"
            )


def _skip_reason(case: Case) -> str:
    collective, entry = collectives.get(case.collective), transports.entry(case.outer.transport)
    if case.outer.layout.ranks < 2:
        return "one rank has nobody to exchange with"
    if case.size_bytes == 0:
        return f"the size rounds down to 0 for {case.outer.layout.ranks} ranks"
    if case.dtype not in collective.dtypes or case.dtype not in entry.dtypes:
        return f"{case.outer.transport} cannot do {case.collective} on {case.dtype}"
    if case.buffers not in entry.buffers:
        return f"{case.outer.transport} has no {case.buffers} buffers"
    return algorithms.get(case.collective, case.algorithm).supports(case.spec) or ""


def launches(planned: Sequence[PlannedCase], *, seed: int) -> Iterator[Launch]:
    """All launches in the order in which they run.

    Round by round, so that slow drift meets every outer point alike; within a round the outer points, and within a
    launch the cases, are in an order drawn from the seed.
    """
    by_outer: dict[str, list[Case]] = {}
    for item in planned:
        if not item.skip:
            by_outer.setdefault(item.case.outer.key, []).append(item.case)
    rounds = max((case.policy.launches for cases in by_outer.values() for case in cases), default=0)
    for index in range(rounds):
        outers = list(by_outer)
        random.Random(f"{seed}/{index}").shuffle(outers)
        for key in outers:
            cases = [case for case in by_outer[key] if index < case.policy.launches]
            random.Random(f"{seed}/{index}/{key}").shuffle(cases)
            if cases:
                yield Launch(index=index, outer=cases[0].outer, cases=tuple(cases))


def estimate_s(planned: Sequence[PlannedCase]) -> float:
    """A guess of the whole run's seconds: every measurement takes its cap at the most, and each launch starts."""
    runnable = [item.case for item in planned if not item.skip]
    per_launch = {item.outer.key: item.policy.launches for item in runnable}
    return sum(case.policy.cap_s * case.policy.launches for case in runnable) + 3.0 * sum(per_launch.values())


def describe(planned: Sequence[PlannedCase]) -> list[str]:
    """The plan in a few lines of words."""
    runnable = [item.case for item in planned if not item.skip]
    if not runnable:
        return ["no case can run"]
    sizes = sorted({case.size_bytes for case in runnable})
    outers = {case.outer.key: case.outer for case in runnable}
    names = sorted({case.label for case in runnable})
    lines = [
        f"{len(runnable)} cases, {len(planned) - len(runnable)} skipped; "
        f"{len(outers)} set-up{'s' if len(outers) > 1 else ''} x {runnable[0].policy.launches} launches",
        f"sizes: {len(sizes)} from {format_size(sizes[0])} to {format_size(sizes[-1])}",
        f"algorithms: {', '.join(names)}",
    ]
    lines += [f"set-up: {outer}" for outer in list(outers.values())[:8]]
    if len(outers) > 8:
        lines.append(f"set-up: and {len(outers) - 8} more")
    return lines
