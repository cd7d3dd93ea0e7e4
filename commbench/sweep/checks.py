"""Checks of a plan: what a user cannot have meant, and why a case cannot run."""

from __future__ import annotations

from collections.abc import Sequence

from commbench import algorithms, collectives, transports
from commbench.emulated import MOST_NODES, parse_slow_link
from commbench.errors import UsageError
from commbench.records import MOST_RANKS, Case, PlannedCase
from commbench.sweep.config import SweepConfig
from commbench.sweep.keys import FABRIC, KEYS, LAYER, SIZE_KEYS
from commbench.units import MOST_BYTES


def reject_unknown_algorithms(config: SweepConfig, wanted: Sequence[str]) -> None:
    """Raise `UsageError` for an algorithm of no collective of the sweep, and a collective without algorithm."""
    if "all" in config.algorithm:
        return
    for name in config.algorithm:
        if not any(name in algorithms.names(collective) for collective in wanted):
            has = "; ".join(f"{of} has {', '.join(algorithms.names(of))}" for of in wanted)
            raise UsageError(f"{name} is not an algorithm of {' or '.join(wanted)}", hint=f"{has}; or all")
    for collective in wanted:
        if not set(config.algorithm) & set(algorithms.names(collective)):
            raise UsageError(
                f"no algorithm of {collective} is asked for",
                hint=f"add one to algorithm=: {', '.join(algorithms.names(collective))}, or all",
            )


def reject_too_many_ranks(nodes: int, ranks_per_node: int) -> None:
    """Raise `UsageError` for more ranks than a record holds."""
    if nodes * ranks_per_node > MOST_RANKS:
        raise UsageError(
            f"{nodes} nodes x {ranks_per_node} ranks are {nodes * ranks_per_node} ranks", hint=f"{MOST_RANKS} at most"
        )


def reject_too_large(collective: str, size: int) -> None:
    """Raise `UsageError` for a size that follows from the keys, or from others by rounding, and fits no record."""
    if size > MOST_BYTES:
        raise UsageError(
            f"{collective} of {size} bytes: it is too large",
            hint="a size is at most 2^53 bytes: lower sizes.max, tokens, model_dim, top_k or send_bytes",
        )


_EMULATED = frozenset(name for name, key in KEYS.items() if key.group == FABRIC)


def reject_idle_keys(configs: Sequence[SweepConfig], cases: Sequence[PlannedCase]) -> None:
    """Raise `UsageError` for what a user sets in vain; a recipe may set it for other values than the user's."""
    used: set[str] = set()
    typed = frozenset[str]().union(*(config.typed for config in configs))
    layer = any("tokens" in config.layer for config in configs)
    for item in cases:
        used |= {*item.case.params, *item.case.arguments}
        if "payload" in collectives.get(item.case.collective).arguments:
            used.add("payload")  # payload=none is what holds anyway
        if item.case.arguments.get("splits") == "trace":
            used.add("trace")  # of which a matrix was made
        traced = item.case.arguments.get("router") == "trace"  # which has tokens of its own
        if emulated := item.case.setup.emulated:
            used |= _EMULATED if emulated.spines > 1 else _EMULATED - {"routing"}
        used |= {"binding_memory"} if item.case.setup.binding != "none" else set()
        used |= {"cpu_masks"} if item.case.setup.cpu_masks else set()
        if "row_bytes" in item.case.arguments and "row_bytes" not in typed:
            used.add("model_dim")
        if not traced and "matrix" not in item.case.arguments and not ("send_bytes" in typed and item.case.arguments):
            used |= {*SIZE_KEYS}
            used |= set(LAYER) if layer else set()
    for key in typed - used:
        if hint := KEYS[key].idle:
            raise UsageError(f"{key} is set, but has no effect in this sweep", hint=hint)


def skip_reason(case: Case) -> str:
    """Return why a case cannot run, in words, "" where it can."""
    collective, entry = collectives.get(case.collective), transports.entry(case.setup.transport)
    spec = case.spec
    if spec.ranks < 2 and not collective.alone:
        where = "" if case.groups == "world" else f"groups={case.groups} of {case.setup.layout}: "
        return f"{where}one rank has nobody to exchange with"
    if case.setup.emulated and not 2 <= case.setup.nodes <= MOST_NODES:
        return f"an emulated fabric has 2 to {MOST_NODES} nodes, layout {case.setup.layout} has {case.setup.nodes}"
    if (emulated := case.setup.emulated) and emulated.rails:
        if emulated.spines > 1 or emulated.intra_link or emulated.slow_link:
            return "a fabric with rails (spine_rate) has one spine, and no intra_link and no slow_link"
        if emulated.hosts > MOST_NODES:
            return f"a fabric with rails has {MOST_NODES} ranks at most"
    if case.setup.emulated and case.setup.emulated.slow_link:
        node, _, _ = parse_slow_link(case.setup.emulated.slow_link)
        if node >= case.setup.nodes:
            return f"slow_link={case.setup.emulated.slow_link}: the nodes are 0 .. {case.setup.nodes - 1}"
    if case.setup.virtual_hosts and not entry.virtual_hosts:
        return f"{case.setup.transport} cannot take nodes for hosts of their own; fabric=virtual is for nccl"
    if case.setup.virtual_hosts and case.setup.nodes < 2:
        return f"virtual hosts are at least 2, layout {case.setup.layout} has {case.setup.nodes}"
    if case.setup.emulated and "GLOO_SOCKET_IFNAME" in case.setup.env:
        return "on an emulated fabric gloo uses its links; env.GLOO_SOCKET_IFNAME would be overwritten"
    if case.setup.emulated and entry.not_emulated:
        return f"{case.setup.transport} does not run on an emulated fabric: {entry.not_emulated}"
    if case.size_bytes == 0:
        return f"the size rounds down to 0 for {spec.ranks} ranks"
    algorithm = algorithms.get(case.collective, case.algorithm)
    if algorithm.reduces and case.dtype not in entry.reduces:
        return f"{case.setup.transport} cannot add up {case.dtype}, which {algorithm.name} has it do"
    if case.dtype not in (entry.reduces if collective.reduces(case.arguments) else entry.dtypes):
        return f"{case.setup.transport} cannot do {case.collective} on {case.dtype}"
    if case.buffers not in entry.buffers:
        return f"{case.setup.transport} has no {case.buffers} buffers"
    if case.mode not in entry.modes:
        return f"{case.setup.transport} has no mode {case.mode}"
    if case.in_place and collective.in_place(spec, 0) is None:
        return f"{case.collective} is not defined in place"
    if case.overlap != "none" and (not entry.overlaps or case.mode != "isolated"):
        return (
            "only isolated calls have something beside them"
            if entry.overlaps
            else (f"{case.setup.transport} has nothing to compute beside")
        )
    on_wire = collective.on_wire(spec) if not (reason := collective.unsupported(spec)) else spec
    if on_wire is not spec and case.overlap != "none":
        return "what has come as a payload is made numbers again before the call ends, with nothing beside it"
    if algorithm.one_sided and not entry.one_sided:
        return f"over {case.setup.transport} no rank can write into the memory of another"
    for key, value in algorithm.demands.items():
        if case.arguments[key] != value:
            return f"{algorithm.name} needs {key}={value}"
    return reason or algorithm.unsupported(on_wire)
