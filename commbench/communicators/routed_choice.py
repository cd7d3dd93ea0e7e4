"""Which way a program's dispatch takes by a profile: a look-up by what its layer asks for, and why it is that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from commbench import payloads
from commbench.communicators.select import in_range
from commbench.profile import Choice
from commbench.profile.table import Curve
from commbench.spec import Value
from commbench.units import format_size

PROFILE = "profile"  # in place of an algorithm's name
DEFAULT = "per_choice"
# What a sweep has and a program has not -> what sends the same rows.
_IN_PROGRAMS = {
    "per_node_pipelined": "per_node", "slots": "per_rank", "symm_per_rank": "per_rank", "symm_slots": "per_rank",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAsk:
    """What a layer asks of a dispatch. size_bytes: tokens of the rank that has most, times bytes of a row."""

    top_k: int
    experts: int
    size_bytes: int
    payload: str = payloads.NONE

    def __str__(self) -> str:
        return f"top-{self.top_k} of {self.experts}" + ("" if self.payload == payloads.NONE else f", as {self.payload}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedChoice:
    """The way to take, and why. choice: the profile's; None: it has none for this."""

    algorithm: str
    why: str
    choice: Choice | None = None


def choose(curves: Sequence[Curve] | None, ask: LayerAsk) -> RoutedChoice:
    """Return the way for a dispatch. curves: all that was tuned for dispatches here; None without a profile.

    Of several that were tuned for such layers, with other routers or counts, the first by name holds: what is told
    before (`counts=cached`) comes last, as a program is never told.
    """
    if curves is None:
        return RoutedChoice(algorithm=DEFAULT, why="no profile: the default")
    fitting = [curve for curve in curves if _fits(curve, ask)]
    if not fitting:
        has = ", ".join(dict.fromkeys(_said(curve) for curve in curves))
        why = f"the profile has nothing for {ask}{f', but for {has}' if has else ''}: the default"
        return RoutedChoice(algorithm=DEFAULT, why=why)
    choice = min(fitting, key=_order).at(ask.size_bytes)
    how = ", ".join(f"{key}={choice.arguments[key]}" for key in ("router", "counts") if key in choice.arguments)
    why = f"the profile's choice{in_range(choice)}, tuned with {how}"
    algorithm = _IN_PROGRAMS.get(choice.algorithm, choice.algorithm)
    if algorithm != choice.algorithm:
        why += f"; {choice.label} is a sweep's alone, and {algorithm} sends the same rows"
    return RoutedChoice(algorithm=algorithm, why=why, choice=choice)


def _fits(curve: Curve, ask: LayerAsk) -> bool:
    asked: dict[str, Value] = {"top_k": ask.top_k, "experts": ask.experts, "output": "expert", "payload": ask.payload}
    return all(curve.arguments.get(key, payloads.NONE) == value for key, value in asked.items())


def _said(curve: Curve) -> str:
    numbers = {key: int(curve.arguments[key]) for key in ("top_k", "experts")}
    return str(LayerAsk(**numbers, size_bytes=0, payload=str(curve.arguments.get("payload", payloads.NONE))))


def _order(curve: Curve) -> tuple[bool, bool, str]:
    arguments = curve.arguments
    return arguments.get("counts") != "host", arguments.get("router") != "uniform", repr(sorted(arguments.items()))


def describe(ask: LayerAsk, found: RoutedChoice) -> str:
    """Return the first lines of `explain` for such a dispatch."""
    return f"dispatch of {format_size(ask.size_bytes)} a rank, {ask}: {found.algorithm}\n    why: {found.why}"
