"""The choice for a call: a look-up in the profile's table, and what forbids it. No file, no lock, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from commbench import algorithms, collectives, transports
from commbench.algorithms.base import Algorithm
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.profile import AlgorithmConfig, Choice
from commbench.profile.table import Curve, Table
from commbench.spec import Spec, Value
from commbench.units import format_size

PLAIN = "plain"
PEER = "peer"  # symmetric memory of torch's, which other ranks write to; "symmetric" alone is a window of NCCL's

Matrix = tuple[tuple[int, ...], ...]


class Ask(NamedTuple):
    """A call, as far as the choice and its preparation depend on it. The same on all ranks, and a key of caches."""

    collective: str
    dtype: str  # of a reduction; "uint8" where bytes are moved
    size_bytes: int  # nccl-tests' column
    arguments: tuple[tuple[str, Value], ...] = ()  # of the collective, by name
    in_place: bool = False
    out: str = PLAIN  # what memory the output is: "plain", "registered", "symmetric", "peer"
    inp: str = PLAIN
    captured: bool = False
    asynchronous: bool = False
    matrix: Matrix | None = None  # all_to_allv: bytes from rank i to rank j in row i; None: not all ranks know it


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    config: AlgorithmConfig
    algorithm: Algorithm
    spec: Spec
    why: str
    choice: Choice | None = None  # of the profile; None: nothing was tuned


class Chooser:
    """Choose algorithms for the calls of one communicator."""

    def __init__(self, transport: str, layout: Layout, table: Table | None) -> None:
        """Choose from `table`, the choices of the scope that holds here; None without a profile."""
        self._transport, self._layout, self._table = transport, layout, table

    def choose(self, ask: Ask, *, but: str = "", counts: bool = True) -> Chosen:
        """Return the choice for a call. Raises `UsageError` where no algorithm can do it, with the reason of each.

        `but`: why the memory of the buffers, whatever it is, does not count. `counts`: without them, the choice for an
        uneven exchange whose counts are still to be found out.
        """
        if self._table is None:
            return self._default(ask, "no profile: the default")
        curve = self._curve(ask)
        if curve is None:
            return self._default(ask, f"the profile has nothing for {name_call(ask)}: the default")
        if ask.collective == "all_to_allv" and ask.matrix is None and counts:
            return self._default(ask, "without matrix=, ranks do not know each other's counts: the default")
        choice = curve.at(ask.size_bytes)
        config, buffers, why = choice.config, choice.buffers, f"the profile's choice{in_range(choice)}"
        if not _has_memory(choice, ask):
            what = f"{choice.label} on {choice.buffers} buffers was tuned, "
            what += but or "and these are not from empty()"
            if choice.on_plain is None:
                return self._default(ask, f"{what}; the default", curve)
            config, buffers, why = choice.on_plain, PLAIN, f"{what}; the profile's choice on plain memory"
        spec = self._spec(ask, config, buffers)
        if reason := self._unsupported(ask, config, spec, counts=counts):
            return self._default(ask, f"{config.label} cannot do this: {reason}; the default", curve)
        return Chosen(config=config, algorithm=_algorithm(ask, config), spec=spec, why=why, choice=choice)

    def captures(self, collective: str) -> bool:
        """Return whether something was tuned for calls in a CUDA graph alone."""
        curves = [] if self._table is None else self._table.curves(collective, captured=True)
        return any(choice.captured for curve in curves for choice in curve.choices)

    def tuned(self, collective: str) -> list[Curve] | None:
        """Return all that was tuned for a collective, whatever its arguments; None without a profile."""
        return None if self._table is None else self._table.curves(collective)

    def memory(self, ask: Ask) -> str:
        """Return the memory that the choice for this call needs: "plain", "registered", "symmetric" or "peer"."""
        curve = None if self._table is None else self._curve(ask)
        if curve is None:
            return PLAIN
        return _memory_of(curve.at(ask.size_bytes))

    def _curve(self, ask: Ask) -> Curve | None:
        """Return what was tuned for these arguments; for none where nobody asked for any."""
        assert self._table is not None
        if ask.collective == "all_to_allv":  # tuned with splits of a rule; a program has its own
            return next(iter(self._table.curves(ask.collective, captured=ask.captured)), None)
        curve = self._table.curve(ask.collective, captured=ask.captured, arguments=dict(ask.arguments))
        if curve is None and dict(ask.arguments) == defaults(ask.collective):
            curve = self._table.curve(ask.collective, captured=ask.captured)
        return curve

    def _default(self, ask: Ask, why: str, curve: Curve | None = None) -> Chosen:
        """Return the first algorithm that can do it: what the library or today's practice does."""
        choice = None if curve is None else curve.at(ask.size_bytes)
        reasons = []
        for name in algorithms.names(ask.collective):
            params = {key: value for key, (value, _) in algorithms.get(ask.collective, name).params.items()}
            config = AlgorithmConfig(algorithm=name, params=params)
            spec = self._spec(ask, config, PLAIN)
            reason = self._unsupported(ask, config, spec)
            if not reason:
                return Chosen(config=config, algorithm=_algorithm(ask, config), spec=spec, why=why, choice=choice)
            reasons.append(f"{name}: {reason}")
        raise UsageError(f"no algorithm can do {name_call(ask)} of {ask.size_bytes} B here", hint="; ".join(reasons))

    def _spec(self, ask: Ask, config: AlgorithmConfig, buffers: str) -> Spec:
        arguments = dict(ask.arguments)
        if ask.matrix is not None and config.algorithm != "direct":  # which knows its own counts
            arguments |= {"splits": "matrix", "matrix": json.dumps(ask.matrix)}
        return Spec(
            collective=ask.collective,
            dtype=ask.dtype,
            size_bytes=ask.size_bytes,
            layout=self._layout,
            params=config.params,
            arguments=arguments,
            in_place=ask.in_place,
            buffers=buffers,
        )

    def _unsupported(self, ask: Ask, config: AlgorithmConfig, spec: Spec, *, counts: bool = True) -> str:
        algorithm = _algorithm(ask, config)
        for key, value in algorithm.demands.items():
            if spec.arguments.get(key) != value:
                return f"it does {key}={value}, and this is {key}={spec.arguments.get(key)}"
        if ask.collective == "all_to_allv" and ask.matrix is None and config.algorithm != "direct" and counts:
            return "it needs the counts of all ranks"
        if not counts and algorithm.counts_inside is None:
            return ""  # asked again with the counts
        if algorithm.one_sided and not transports.entry(self._transport).one_sided:
            return f"no rank reaches the memory of another over {self._transport}"
        return algorithm.unsupported(spec)


def name_call(ask: Ask) -> str:
    """Return `all_reduce op=sum`."""
    words = [f"{key}={value}" for key, value in ask.arguments]
    return " ".join([ask.collective, *words, *(["in a graph"] if ask.captured else [])])


def describe_call(ask: Ask) -> str:
    """Return `all_reduce op=sum, 4 KiB, in place`."""
    words = [name_call(ask), format_size(ask.size_bytes) if ask.size_bytes else "any size"]
    words += ["in place"] if ask.in_place else []
    words += ["asynchronous"] if ask.asynchronous else []
    words += [f"{ask.out} buffers"] if ask.out != PLAIN else []
    return ", ".join(words)


def defaults(collective: str) -> dict[str, Value]:
    arguments = collectives.get(collective).arguments
    return {key: item.default for key, item in arguments.items() if item.default is not None}


def size_of(matrix: Sequence[Sequence[int]]) -> int:
    """Return the most that one rank sends or receives, own block included."""
    return max(*map(sum, matrix), *map(sum, zip(*matrix, strict=True)))


def _algorithm(ask: Ask, config: AlgorithmConfig) -> Algorithm:
    return algorithms.get(ask.collective, config.algorithm)


def _memory_of(choice: Choice) -> str:
    one_sided = algorithms.get(choice.collective, choice.algorithm).one_sided
    return PEER if one_sided else choice.buffers


def _has_memory(choice: Choice, ask: Ask) -> bool:
    needed = _memory_of(choice)
    # Peers write into outputs; the input is read by its own rank alone.
    return needed == PLAIN or (ask.out == needed and needed in (PEER, ask.inp))


def in_range(choice: Choice) -> str:
    """Return ` for 1 .. 4 B`, the sizes that a choice is for."""
    if choice.min_bytes == 0 and choice.max_bytes is None:
        return " for all sizes"
    end = "up" if choice.max_bytes is None else str(choice.max_bytes)
    return f" for {choice.min_bytes} .. {end} B"
