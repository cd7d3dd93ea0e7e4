"""What differs between nodes that should be alike: what makes a node slower is named, the rest is only said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from commbench.check.named import Named
from commbench.output.answer import words

_RATE = re.compile(r"([\d.]+) ([MGT])bit/s")
_LINKS = ("InfiniBand", "RoCE", "Ethernet")
_SCALE = {"M": 1e-3, "G": 1.0, "T": 1e3}
_MOST_NODES = 6  # listed by number
Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node: its machine as `commbench topo --format json` has it, and what else was collected there, if it was."""

    node: int
    machine: Facts
    metadata: Facts


@dataclass(frozen=True, slots=True)
class _Number:
    """Something of which a node shall have as much as the others."""

    what: str  # of a node, in words
    unit: str
    of: Callable[[NodeFacts], float | None]
    group: str = ""  # of which a node is named once


def _rates(facts: NodeFacts, link: str) -> list[float] | None:
    """Return Gbit/s of the cards of a kind, 0 of one that is down; None where a card does not say."""
    rates = []
    for card in facts.machine.get("nics") or ():
        if card.get("link") != link:
            continue
        match = _RATE.fullmatch(str(card.get("speed")))
        if match is None and card.get("speed") != "down":
            return None
        rates.append(float(match[1]) * _SCALE[match[2]] if match else 0.0)
    return rates or None


def _slowest(link: str) -> Callable[[NodeFacts], float | None]:
    def slowest(facts: NodeFacts) -> float | None:
        return min((rate for rate in _rates(facts, link) or () if rate), default=None)

    return slowest


def _together(link: str) -> Callable[[NodeFacts], float | None]:
    def together(facts: NodeFacts) -> float | None:
        rates = _rates(facts, link)
        return None if rates is None else sum(rates)

    return together


def _pcie(kind: str) -> Callable[[NodeFacts], float | None]:
    def total(facts: NodeFacts) -> float | None:
        rates = [device.get("pcie_gbps") for device in facts.machine.get(kind) or ()]
        return float(sum(rates)) if rates and all(isinstance(rate, int | float) for rate in rates) else None

    return total


def _of_metadata(key: str) -> Callable[[NodeFacts], float | None]:
    def value(facts: NodeFacts) -> float | None:
        number = facts.metadata.get(key)
        return float(number) if isinstance(number, int | float) and not isinstance(number, bool) else None

    return value


_NUMBERS = (
    *(
        number
        for link in _LINKS
        for number in (
            # Every rail waits for the slowest one. What that says of a node need not be said of its cards together.
            _Number(f"slowest {link} card runs at", "Gbit/s", _slowest(link), group=link),
            _Number(f"{link} cards run at", "Gbit/s together", _together(link), group=link),
        )
    ),
    _Number("network cards have PCIe links of", "GB/s together", _pcie("nics")),
    _Number("GPUs have PCIe links of", "GB/s together", _pcie("gpus")),
    _Number("GPUs are", "in number", lambda facts: float(len(facts.machine["gpus"])) if "gpus" in facts.machine
            else None),
    _Number("GPUs run at up to", "MHz", _of_metadata("gpu_max_clock_mhz")),
    _Number("GPUs may take", "W each", _of_metadata("gpu_power_limit_w")),
)  # fmt: skip
# Worth knowing when numbers differ; no fault by themselves.
_TEXTS: dict[str, Callable[[NodeFacts], Any]] = {
    "GPU driver": lambda facts: facts.metadata.get("driver"),
    "GPU models": lambda facts: _counted(device.get("model") for device in facts.machine.get("gpus") or ()),
    "network cards": lambda facts: _counted(
        f"{card.get('link')} {card.get('speed')}".strip() for card in facts.machine.get("nics") or ()
    ),
    "kernel": lambda facts: facts.metadata.get("kernel"),
    "CPU model": lambda facts: facts.metadata.get("cpu"),
    "CPUs": lambda facts: facts.machine.get("cpus"),
    "CPU governor": lambda facts: facts.metadata.get("governor"),
    "NUMA nodes": lambda facts: len(facts.machine.get("numa_nodes") or ()) or None,
    "Python": lambda facts: facts.metadata.get("python"),
    "torch": lambda facts: (facts.metadata.get("packages") or {}).get("torch"),
}


def _counted(names: Any) -> str | None:
    counts = Counter(str(name) for name in names)
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items())) or None


def named(nodes: Sequence[NodeFacts]) -> list[Named]:
    """Return the nodes that have less of something than the others."""
    found = []
    known: set[tuple[int, str]] = set()
    for number in _NUMBERS:
        values = {one.node: value for one in nodes if (value := number.of(one)) is not None}
        usual = _usual(list(values.values()))
        for node, value in values.items():
            group = (node, number.group or number.what)
            if usual is not None and value < usual and group not in known:
                known.add(group)
                found.append(_less(number, node, value, usual))
    return found


def _usual(values: Sequence[float]) -> float | None:
    """Return what most have; of equally many the most. None of fewer than two, and where all differ but two."""
    counts = Counter(values)
    if len(values) < 2:
        return None
    most = max(counts.values())
    return max(value for value, count in counts.items() if count == most)


def _less(number: _Number, node: int, value: float, usual: float) -> Named:
    ratio = usual / value if value else None
    says = f"{number.what} {value:g} {number.unit}, other nodes' at {usual:g}"
    return Named(
        kind="hardware",
        name=f"node {node}'s",
        says=f"{says}: {{}} less" if ratio else says,
        ratio=ratio,
        low=ratio,
        high=ratio,
        about={"nodes": [node]},
        evidence=(f"read from the machine: {value:g} against {usual:g} {number.unit}",),
    )


def said(nodes: Sequence[NodeFacts]) -> list[str]:
    """Return what else differs: `kernel: 6.8.0 on nodes 0 to 2, 6.5.0 on node 3`."""
    lines = []
    for what, of in _TEXTS.items():
        groups: dict[str, list[int]] = {}
        for one in nodes:
            value = of(one)
            if value is not None:
                groups.setdefault(str(value), []).append(one.node)
        if len(groups) > 1:
            parts = [f"{value} on {_nodes(members)}" for value, members in
                     sorted(groups.items(), key=lambda item: (-len(item[1]), item[1]))]  # fmt: skip
            lines.append(f"{what}: {', '.join(parts)}")
    return lines


def _nodes(numbers: Sequence[int]) -> str:
    if len(numbers) > _MOST_NODES:
        return f"{len(numbers)} nodes"
    return f"node{'s' if len(numbers) > 1 else ''} {words.listed(list(map(str, numbers)))}"
