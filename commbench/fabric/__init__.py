"""Fabrics: the links underneath. The real ones, or a cluster emulated on one Linux machine (`emulated.Emulated`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from commbench.emulated import PACKET_BYTES, Emulated
from commbench.errors import EnvironmentProblem
from commbench.fabric import namespaces, network, rails
from commbench.fabric.tools import find
from commbench.links import LinkRate
from commbench.processes.process import rank_environment

_MADE_WITHIN_S = 60  # it takes half a second


def wrap(command: Sequence[str], fabric: Emulated) -> list[str]:
    """Return the words that run `command` with `fabric` around it, or without one make the fabric and take it down."""
    return [sys.executable, "-m", "commbench.fabric", fabric.to_json(), *command]


def check(fabric: Emulated) -> None:
    """Make it once. Raises `EnvironmentProblem` that says which right, program or kernel ability is missing."""
    if sys.platform != "linux":
        raise EnvironmentProblem(
            f"fabric=emulated is made of Linux network namespaces, and this is {sys.platform}",
            hint="run it on Linux, in a virtual machine or a privileged container",
        )
    for name in ("ip", "tc", *(["nft"] if network.sprays(fabric) else [])):
        find(name)
    command, environment = wrap([], fabric), rank_environment({})
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=_MADE_WITHIN_S
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"the emulated fabric was not made within {_MADE_WITHIN_S} s",
            hint="the machine may be overloaded; try again",
        ) from error
    if done.returncode == 0:
        return
    try:
        problem = _last_problem(done.stderr)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise EnvironmentProblem(
            f"the emulated fabric did not start: {done.stderr.strip()[-300:]}", hint="this is a defect of commbench"
        ) from error
    raise EnvironmentProblem(problem["error"], hint=problem["hint"])


def _last_problem(log: str) -> dict[str, str]:
    """Return what the process that makes the fabric said last."""
    problem = json.loads(log.strip().splitlines()[-1])
    return {"error": str(problem["error"]), "hint": str(problem["hint"])}


def explain(log: str) -> str:
    """Return why a launch had no fabric, from its log; "" where that is not what happened."""
    try:
        return "{error} ({hint})".format(**_last_problem(log))
    except (ValueError, IndexError, KeyError, TypeError):
        return ""


def links(fabric: Emulated) -> dict[str, LinkRate]:
    """Return the rates of class `inter`, and of `intra` where it is shaped too; else nobody knows what memory does."""
    known = {
        "inter": LinkRate(
            gbps=fabric.gbps * fabric.spines,
            of="rank" if fabric.rails else "node",
            kind="declared",
            source=fabric.link,
            burst_bytes=fabric.burst_bytes * fabric.spines,
            packet_bytes=PACKET_BYTES,
            packet_overhead=fabric.message_overhead,
        )
    }
    if fabric.intra_link:
        # htb lets a packet pass while it has anything left, tbf only what it has.
        burst = fabric.intra_burst_bytes + PACKET_BYTES
        known["intra"] = LinkRate(
            gbps=fabric.intra_gbps, of="node", kind="declared", source=fabric.intra_link, burst_bytes=burst
        )
    return known


def enter(host: int) -> None:
    """Move this process, before it has threads that talk, into the network of a node, or with rails of a rank."""
    namespaces.enter(os.environ[namespaces.NODES].split(":")[host])


def spine_bytes(fabric: Emulated) -> float:
    """Return the bytes that leaves have sent to the spine; 0 where there are no rails."""
    if not fabric.rails:
        return 0.0
    switch = Path(os.environ[namespaces.NODES].split(":")[0]).parent.parent  # the process that made the network
    return rails.spine_bytes(fabric, switch / "net/dev")


def identity() -> int:
    """Return a number that processes in the same network share, and no others on this machine."""
    return Path("/proc/self/ns/net").stat().st_ino


def counters(fabric: Emulated) -> list[float]:
    """Return the bytes that this node has sent over each of its links, then those that came over each."""
    table = {}
    for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]:
        name, _, fields = line.partition(":")
        table[name.strip()] = [float(field) for field in fields.split()]
    names = [f"{network.DATA}{spine}" for spine in range(fabric.spines)]
    return [table[name][column] for column in (8, 0) for name in names]
