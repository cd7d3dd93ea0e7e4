"""What a communicator does and why, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from commbench.communicators.select import Ask, Chosen, describe_call, name_call
from commbench.layout import Layout
from commbench.profile import Choice, Evidence, Scope
from commbench.profile.scope import Here
from commbench.records import network_note
from commbench.units import format_size


@dataclass(slots=True, kw_only=True)
class CommunicatorInfo:
    """What a communicator knows of its set-up, and the profile that it goes by."""

    here: Here
    layout: Layout
    machines: int = 1  # that the ranks are on
    note: str = ""  # why the layout is not what one might expect
    profile: str = ""  # its name; "" without one
    scope: Scope | None = None
    differences: list[str] = field(default_factory=list)  # that the user insisted on
    unsupported: dict[str, str] = field(default_factory=dict)  # buffers that a choice needs -> why there are none


def explain(info: CommunicatorInfo, seen: Mapping[Ask, Chosen]) -> str:
    """Return the set-up and a few lines for each kind of call: collective, size, algorithm, evidence, why."""
    here = info.here
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items())
    lines = [f"here: {here.transport} ({versions}), {', '.join(filter(None, [here.gpu, _nodes(info.layout)]))}"]
    lines += [f"note: {info.note}"] if info.note else []
    lines += [f"note: {text}"] if (text := network_note(here.between)) else []
    if info.scope is None:
        lines.append("profile: none")
    else:
        lines.append(f"profile: {info.profile}, scope {info.scope.id} ({info.scope})")
    lines += [f"insisted, though {difference}" for difference in info.differences]
    lines += [f"{buffers} buffers are plain here: {reason}" for buffers, reason in info.unsupported.items()]
    for ask, chosen in sorted(seen.items(), key=lambda item: (name_call(item[0]), item[0].size_bytes)):
        lines.append(f"{describe_call(ask)}: {chosen.config.label}")
        lines.append(f"    why: {chosen.why}")
        if chosen.choice is not None:
            lines += evidence(chosen.choice, ask.size_bytes)
    return "\n".join(lines)


def _nodes(layout: Layout) -> str:
    nodes, ranks = layout.nodes, layout.ranks_per_node
    return f"{nodes} node{'s' * (nodes > 1)} x {ranks} rank{'s' * (ranks > 1)}"


def evidence(choice: Choice, size_bytes: int) -> list[str]:
    """Return the line of the evidence at the tuned size nearest below, or the smallest."""
    if not choice.evidence:
        return ["    evidence: none: this size was not tuned"]
    below = [item for item in choice.evidence if item.size_bytes <= size_bytes]
    return [f"    evidence: {_line(choice, below[-1] if below else choice.evidence[0])}"]


def _line(choice: Choice, item: Evidence) -> str:
    interval = "no interval" if item.low is None or item.high is None else f"{item.low:.2f} .. {item.high:.2f}"
    words = f"{choice.label} {item.ratio:.2f} times as fast as {item.default} ({interval}, {item.pairs} pairs) "
    words += f"at {format_size(item.size_bytes)}: {_us(item.default_us)} -> {_us(item.chosen_us)} us"
    return words if item.confirmed else f"{words}; {item.verdict}"


def _us(value: float) -> str:
    """Return four digits, or all that are before the point."""
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"
