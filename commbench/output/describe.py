"""What rows of one curve share, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from commbench.emulated import Emulated
from commbench.records import NOMINAL, Fabric, Row


def describe(row: Row) -> str:
    """All that rows of one curve share: `all_reduce op=sum over gloo, fp32, isolated, ..., 2 nodes x 2 ranks`."""
    words = [f"{row.what} over {row.transport}", row.dtype, row.mode]
    words += [f"{row.buffers} buffers", f"{row.cache} cache", describe_layout(row.nodes, row.ranks, row.fabric)]
    words += [describe_emulated(dataclasses.asdict(row))] if row.fabric == Fabric.EMULATED else []
    words += [f"groups of {row.group_size} ({row.groups})"] if row.groups != "world" else []
    words += [f"beside a {row.overlap}"] if row.overlap != "none" else []
    words += [row.binding_text] if row.binding_text else []
    return ", ".join([*words, *(f"{name}={value}" for name, value in row.env.items())])


def usable_cpus(meta: Mapping[str, Any]) -> int:
    """Return how many CPUs the run could keep busy, by what run.json says of the machine; 0 where it does not."""
    machine = meta.get("machine") or {}
    return int(machine.get("usable_cpus") or len(machine.get("affinity") or []))


def crowded(meta: Mapping[str, Any], transport: str, fabric: str, ranks: int) -> str:
    """Return that ranks wait for CPUs; "" where they have enough, or where CPUs do not decide.

    On an emulated network links decide, ranks of real nodes are elsewhere, and a scripted network has a clock of its
    own.
    """
    cpus = usable_cpus(meta)
    if transport == "scripted" or fabric in (Fabric.REAL, Fabric.EMULATED) or not 0 < cpus < ranks:
        return ""
    return f"{ranks} ranks share {cpus} CPUs, so times include waiting for a CPU"


def describe_layout(nodes: int, ranks: int, fabric: str) -> str:
    """`2 nodes x 4 ranks, declared on one machine`."""
    text = f"{nodes} node{'s' if nodes > 1 else ''} x {ranks // nodes} ranks"
    return ", ".join([text, NOMINAL[fabric]] if fabric in NOMINAL else [text])


def describe_emulated(setting: Mapping[str, Any]) -> str:
    """`emulated: 1gbit links, 30000 B per packet`."""
    names = ("nodes", "link", "message_overhead", "spines", "routing", "intra_link", "slow_link", "spine_rate")
    return f"emulated: {Emulated(**{name: setting[name] for name in names})}"
