"""What there is to search: for each problem its candidates, of which one is the default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from commbench import algorithms, collectives, payloads, transports
from commbench.errors import UsageError
from commbench.records import Case, PlannedCase, Setup
from commbench.serialise import as_dict, digest
from commbench.spec import Value
from commbench.sweep import plan
from commbench.sweep.config import SweepConfig

_OF_SIZE = ("send_bytes", "matrix", "row_bytes")  # arguments of an uneven exchange that follow from how much it moves
_LAUNCH_KEYS = ("env", "binding", "cpu_masks", "binding_memory")  # of a set-up: what starts of ranks decide


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One collective at one size in one scope."""

    key: str
    default: Case
    candidates: tuple[Case, ...]  # all that can run here, the default among them
    skipped: tuple[PlannedCase, ...] = ()
    calls: float | None = None  # that a step of the program waits for; None: nothing says so, all sizes count alike

    @property
    def collective(self) -> str:
        return self.default.collective

    @property
    def arguments(self) -> dict[str, Value]:
        return self.default.arguments

    @property
    def shape(self) -> dict[str, Value]:
        """Return the arguments that are the same at every size."""
        return {key: value for key, value in self.arguments.items() if key not in _OF_SIZE}

    @property
    def captured(self) -> bool:
        return self.default.mode == "graph"

    @property
    def size_bytes(self) -> int:
        return self.default.size_bytes

    @property
    def curve(self) -> str:
        """Return the same for all sizes of one thing to do."""
        return repr((self.collective, sorted(self.shape.items()), self.captured))


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """What one scope of the profile will be about."""

    setups: tuple[Setup, ...]  # that differ in how ranks are started; the default first
    problems: tuple[Problem, ...]

    @property
    def default(self) -> Setup:
        return self.setups[0]

    @property
    def groups(self) -> str:
        """Return the groups of ranks that work at the same time; the scope is about one of them."""
        return self.problems[0].default.groups

    def __str__(self) -> str:
        return f"{self.default}" + ("" if self.groups == "world" else f", groups of {self.groups}")


def identity(case: Case) -> str:
    """Return the digest of what is measured, however long and however often."""
    values = as_dict(case)
    del values["policy"]
    return digest(values)


def candidate_key(case: Case) -> str:
    """Return the digest of a candidate at whatever size: its algorithm, parameters, buffers and start of ranks."""
    return digest([case.algorithm, case.params, case.buffers, case.setup.key])


def label(case: Case, default: Setup) -> str:
    """Return a candidate in words, with what is not the default."""
    setup = case.setup
    words = [case.label, f"{case.buffers} buffers" if case.buffers != "plain" else ""]
    words += [setup.binding_text if setup.binding_text != default.binding_text else ""]
    words += [f"{name}={value}" for name, value in setup.env.items() if default.env.get(name) != value]
    return ", ".join(word for word in words if word)


def regions(configs: Iterable[SweepConfig]) -> list[Region]:
    """Return what is to be tuned, by scope. Raises `UsageError` for what cannot be tuned."""
    wide: list[PlannedCase] = []
    plain: list[PlannedCase] = []
    for config in map(_timed_one_way, configs):
        _check(config)
        wide += [item for item in plan.expand([_widened(config)]) if not _unasked(item.case, config)]
        every = replace(config, algorithm=["all"], params={}, buffers=["plain"], typed=frozenset())
        plain += [item for item in plan.expand([every]) if not _unasked(item.case, config)]
    defaults = _defaults(plain)
    grouped: dict[str, dict[str, list[PlannedCase]]] = {}
    for item in {
        item.case.case_id: item for item in [*(PlannedCase(case=case) for case in defaults.values()), *wide]
    }.values():
        grouped.setdefault(_region(item.case), {}).setdefault(_problem(item.case), []).append(item)
    result = []
    for region in grouped.values():
        problems = [problem for key, items in region.items() if (problem := _as_problem(key, items, defaults.get(key)))]
        if problems:
            setups = dict.fromkeys(case.setup.key for problem in problems for case in problem.candidates)
            by_key = {case.setup.key: case.setup for problem in problems for case in problem.candidates}
            first = problems[0].default.setup.key
            ordered = [first, *(key for key in setups if key != first)]
            problems.sort(key=lambda problem: (problem.curve, problem.size_bytes))
            result.append(Region(setups=tuple(by_key[key] for key in ordered), problems=tuple(problems)))
    _check_scopes(result)
    others = [case for region in result for problem in region.problems for case in problem.candidates]
    if result and all(case.case_id in {one.case_id for one in defaults.values()} for case in others):
        reasons = sorted({item.skip for item in wide if item.skip})
        raise UsageError(
            "nothing of this can be tuned: only the default can run",
            hint="; ".join(reasons[:3]) or "leave algorithm= out, to search all of them",
        )
    if not result:
        reasons = sorted({item.skip for item in wide if item.skip})
        raise UsageError("nothing of this can be tuned here", hint="; ".join(reasons[:3]) or "see --dry-run")
    return result


def _check_scopes(found: Sequence[Region]) -> None:
    """Raise `UsageError` where what is found in two regions would hold for the same groups."""
    seen: dict[str, Region] = {}
    for region in found:
        layout = region.default.layout.within(region.groups)
        setup = replace(region.default, nodes=layout.nodes, ranks_per_node=layout.ranks_per_node)
        if (other := seen.setdefault(setup.key, region)) is not region:
            raise UsageError(
                f"{other} and {region} are both {layout.nodes} x {layout.ranks_per_node} ranks, and a profile has one "
                "choice for such groups",
                hint="tune each alone, with a profile each",
            )


def _unasked(case: Case, config: SweepConfig) -> bool:
    """Return whether only the algorithm demands what is done, as `tp_input=partial`: that is tuned if asked for."""
    arguments = collectives.get(case.collective).arguments
    demands = algorithms.get(case.collective, case.algorithm).demands
    return any(key not in config.arguments and value != arguments[key].default for key, value in demands.items())


def _timed_one_way(config: SweepConfig) -> SweepConfig:
    """Return the config with one way to time calls outside of graphs, unless the user asks for several."""
    outside_graphs = [mode for mode in config.mode if mode != "graph"]
    if "mode" in config.typed or len(outside_graphs) < 2:
        return config
    return replace(config, mode=[mode for mode in config.mode if mode not in outside_graphs[1:]])


def _check(config: SweepConfig) -> None:
    for key, values, allowed in (
        ("overlap", config.overlap, "none"),
        ("in_place", config.in_place, False),
    ):
        if values != [allowed]:
            raise UsageError(
                f"{key}={','.join(map(str, values))} cannot be tuned",
                hint=f"a profile is for {key}={allowed}; leave it out",
            )
    asked = [value for value in config.arguments.get("payload", []) if value != payloads.NONE]
    if asked and not all(name != "all" and collectives.get(name).routed for name in config.collective):
        raise UsageError(
            f"payload={','.join(map(str, asked))} cannot be tuned: what loses precision is no choice of a profile's",
            hint="leave it out: a call with a payload takes the choice for the bytes that it sends",
        )
    if len(config.dtype) > 1:
        raise UsageError(f"dtype={','.join(config.dtype)}: tuning takes one", hint="tune each, with a profile each")
    if len([mode for mode in config.mode if mode != "graph"]) > 1:
        raise UsageError(
            f"mode={','.join(config.mode)}: tuning takes one way to time calls outside of graphs",
            hint="mode=isolated, mode=pipelined, mode=graph, or one of the first two with graph",
        )


def _widened(config: SweepConfig) -> SweepConfig:
    """Return the config with the values to try of every axis that the user has not set."""
    params = dict(config.params)
    wanted = collectives.EVERY if "all" in config.collective else config.collective
    for (collective, _), algorithm in algorithms.TABLE.items():
        for key, values in algorithm.tries.items():
            if collective in wanted and key not in config.typed:
                params[key] = sorted({*params.get(key, []), *values})
    buffers = config.buffers
    if "buffers" not in config.typed:
        buffers = list(dict.fromkeys(kind for name in config.transport for kind in transports.entry(name).buffers))
    return replace(
        config,
        algorithm=config.algorithm if "algorithm" in config.typed else ["all"],
        params=params,
        buffers=buffers,
    )


def _defaults(planned: Sequence[PlannedCase]) -> dict[str, Case]:
    """Return the default of each problem: of the algorithms that can run the first, as ranks start by default."""
    defaults: dict[str, Case] = {}
    for item in planned:
        key = _problem(item.case)
        if not item.skip and (key not in defaults or _place(item.case) < _place(defaults[key])):
            defaults[key] = item.case
    return defaults


def _place(case: Case) -> int:
    return algorithms.names(case.collective).index(case.algorithm)


def _region(case: Case) -> str:
    """Return the digest of what a scope is about: the set-up less what can be chosen when ranks are started."""
    setup = dataclasses.asdict(case.setup)
    for key in _LAUNCH_KEYS:
        del setup[key]
    return digest(setup if case.groups == "world" else [setup, case.groups])


def _problem(case: Case) -> str:
    values = as_dict(case)
    for key in ("algorithm", "params", "buffers", "policy", "outer"):
        del values[key]
    return digest([values, _region(case)])


def _as_problem(key: str, items: Sequence[PlannedCase], default: Case | None) -> Problem | None:
    if default is None:
        return None
    runnable = tuple(item.case for item in items if not item.skip)
    return Problem(key=key, default=default, candidates=runnable, skipped=tuple(item for item in items if item.skip))
