"""scripted: a transport whose times, faults and noise come from a script. No torch, a virtual clock, real bytes.

It is what the tests measure with: a sweep over it takes the same path as any other, from the plan to the plot, and
its right answer is known. The data really travel, over a mesh of sockets or threads, so that a planted fault (a byte
flipped, two blocks swapped, last call's data, an output left untouched) meets the same check as a fault of a library.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from commbench.errors import UsageError, unknown
from commbench.layout import LINK_CLASSES, Layout, LinkClass
from commbench.links import LinkRate
from commbench.rank_info import RankInfo
from commbench.serialise import parse_json
from commbench.transports.base import Comm
from commbench.transports.host_clock import OnHost
from commbench.transports.scripted.comm import Exchange, ScriptedComm
from commbench.transports.scripted.mesh import Mesh, SocketPairs

FAULTS = ("flip", "swap", "stale", "untouched", "hang", "out_of_memory", "crash")
_FAULT_MATCHES = ("algorithm", "collective", "dtype", "size_bytes", "mode", "launch")

_FAULT_KEYS = (
    "kind",
    "rank",
    "step",
    "from_op",
    "to_op",
    *_FAULT_MATCHES,
)  # operations of this rank, counted within a case

_SLOW_KEYS = ("factor", "from", "to", "node", "direction")
_DIRECTIONS = ("out", "in", "both")
_SPIKE_KEYS = ("chance", "factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Times are alpha + bytes / rate per message, sent one after the other, times a factor and lognormal noise."""

    alpha_us: dict[str, float] = field(default_factory=lambda: {"intra": 2.0, "inter": 10.0})
    gbps: dict[str, float] = field(default_factory=lambda: {"intra": 10.0, "inter": 1.0})
    factor: dict[str, float] = field(default_factory=dict)  # algorithm -> its times are multiplied by this
    noise: float = 0.0  # sigma of the logarithm, per operation
    jitter_us: float = 0.0  # mean of an exponential delay of each rank by itself, per operation
    autocorrelation: float = 0.0  # of `noise`, from one operation to the next: 0 is white, towards 1 it wanders
    launch_noise: float = 0.0  # sigma of the logarithm, drawn once per launch
    case_noise: float = 0.0  # the same for each case of a launch: buffers and connections are never the same twice
    spikes: dict[str, float] = field(default_factory=dict)  # chance of an operation, and the factor of its time then
    pace_us: float = 0.0  # real time that each operation takes, for tests that interrupt it
    # Defects: times of all that a rank does are multiplied, those of messages between these ranks or nodes are.
    slow_ranks: dict[str, float] = field(default_factory=dict)
    slow_links: tuple[dict[str, Any], ...] = ()  # factor, and `from` and `to` (ranks) or `node` and `direction`
    declared: bool = True  # whether the rates are told as link rates, so that results have a bound
    faults: tuple[dict[str, Any], ...] = ()  # kind, rank, step, from_op, and what of the case must match

    @classmethod
    def from_json(cls, text: str) -> Script:
        try:
            raw = parse_json(text or "{}", finite=True)
        except ValueError as error:
            raise UsageError(
                f"the script is not JSON: {error}", hint="see docs/reference/formats.md, 'The scripted transport'"
            ) from error
        tables = (
            [entry for key in ("faults", "slow_links") for entry in raw.get(key, ())] if isinstance(raw, dict) else []
        )
        if not isinstance(raw, dict) or not all(isinstance(entry, dict) for entry in tables):
            raise UsageError(
                "the script is not a JSON object", hint="see docs/reference/formats.md, 'The scripted transport'"
            )
        known = [f.name for f in fields(cls)]
        for key in raw:
            if key not in known:
                raise unknown("key in the script", key, known)
        for fault in raw.get("faults", ()):
            if fault.get("kind") not in FAULTS:
                raise unknown("fault", str(fault.get("kind")), FAULTS)
            for key in fault:
                if key not in _FAULT_KEYS:
                    raise unknown("key of a fault", key, _FAULT_KEYS)
        for key in raw.get("spikes", {}):
            if key not in _SPIKE_KEYS:
                raise unknown("key of spikes", key, _SPIKE_KEYS)
        for link in raw.get("slow_links", ()):
            for key in link:
                if key not in _SLOW_KEYS:
                    raise unknown("key of a slow link", key, _SLOW_KEYS)
            if link.get("direction", "both") not in _DIRECTIONS:
                raise unknown("direction of a slow link", str(link["direction"]), _DIRECTIONS)
        raw["faults"], raw["slow_links"] = tuple(raw.get("faults", ())), tuple(raw.get("slow_links", ()))
        return cls(**raw)


class Scripted(OnHost):
    """Buffers are flat numpy arrays of uint8. `log`, `began` and `allocated` have what algorithms do, if `counting`."""

    name = "scripted"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.script = Script.from_json(options.get("script", ""))
        self.layout = Layout(*options["layout"])
        self.seed: int = options.get("seed", 0)
        self.launch: int = options.get("launch", 0)
        self.rank = self.size = 0
        self.now_us = 0.0
        self.counting = False
        self.log: list[tuple[str, int, int, int]] = []  # (step, src, dst, bytes), this rank's sends
        self.allocated: list[int] = []
        self.began: list[tuple[str, tuple[str, ...]]] = []  # step, and the steps in flight when it was started
        self.pending: list[Exchange] = []  # started and not yet waited for
        self._labels: dict[str, Any] = {}
        self._operations = 0
        self._last: dict[tuple[str, int], bytes] = {}

    @staticmethod
    def before_fork(size: int) -> SocketPairs:
        return SocketPairs(size)

    def connect(self, info: RankInfo, shared: Any = None) -> None:
        self.attach(shared.take(info.rank))

    def attach(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.rank, self.size = mesh.rank, mesh.size
        self.world: Comm = ScriptedComm(self, list(range(mesh.size)))
        self._random = random.Random(f"{self.seed}/{self.launch}/{self.rank}")
        drift = random.Random(f"{self.seed}/{self.launch}").gauss(0, self.script.launch_noise)
        self._launch_factor = float(np.exp(drift))
        self._cases = random.Random(f"{self.seed}/{self.launch}/cases")  # the same on all ranks
        self._case_factor = 1.0
        self._wander = 0.0  # of the logarithm, from one operation to the next

    def close(self) -> None:
        return None

    def case_begins(self, labels: dict[str, Any]) -> None:
        self._labels = labels
        self._operations = 0
        self._last.clear()
        self._case_factor = math.exp(self._cases.gauss(0, self.script.case_noise))

    def overlap(self, wanted: bool) -> None:
        return None

    def product(self, rows: int) -> Callable[[], Any]:
        raise NotImplementedError("a virtual clock has nothing to compute beside; the plan skips such cases")

    def barrier(self) -> None:
        self.now_us = float(self.all_gather([self.now_us]).max())

    def mark(self) -> float:
        return self.now_us

    def aside(self) -> float:
        return self.now_us

    def between_us(self, start: float, end: float) -> float:
        return end - start

    def moment_us(self, mark: float) -> float:
        return mark

    def takes_inside(self, nbytes: int) -> None:
        """Let the time pass that a message of so many bytes takes inside a node."""
        self.now_us += self.script.alpha_us["intra"] + nbytes / self.script.gbps["intra"] / 1e3

    def host_us(self) -> float:
        return self.now_us

    def preemptions(self) -> int:
        return 0

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        if self.pending:
            raise RuntimeError(f"{len(self.pending)} started exchanges were never waited for")
        mine = np.asarray(values, dtype=np.float64)
        peers = [peer for peer in range(self.size) if peer != self.rank]
        got = self.mesh.exchange(dict.fromkeys(peers, mine.tobytes()), peers)
        got[self.rank] = mine.tobytes()
        return np.array([np.frombuffer(got[rank], dtype=np.float64) for rank in range(self.size)])

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    @staticmethod
    def versions() -> dict[str, str]:
        return {"scripted": "1"}

    def links(self) -> dict[LinkClass, LinkRate]:
        return (
            {link: LinkRate(gbps=self.script.gbps[link], kind="declared") for link in LINK_CLASSES}
            if self.script.declared
            else {}
        )

    # What the communicators call.

    def fault(self, *kinds: str, step: str = "") -> str | None:
        """The kind of the planted fault that strikes this rank now, in `step`, if it is one of `kinds`."""
        for fault in self.script.faults:
            if (
                fault["kind"] in kinds
                and fault.get("rank", self.rank) == self.rank
                and fault.get("step", step) == step
                and fault.get("from_op", 0) <= self._operations < fault.get("to_op", math.inf)
                and all(fault[key] == self._labels.get(key) for key in _FAULT_MATCHES if key in fault)
            ):
                return str(fault["kind"])
        return None

    def transfer(
        self, step: str, sends: Mapping[int, Sequence[bytes]], sources: Mapping[int, Sequence[int]]
    ) -> dict[int, bytes]:
        """Move messages between global ranks, advance the virtual clock, and apply faults to what arrives.

        What one rank sends another in one step arrives as one payload. sources: the bytes of each message of a rank.
        """
        match self.fault("hang", "crash", step=step):
            case "hang":
                time.sleep(3600)
            case "crash":
                os._exit(7)
        factor = self._launch_factor * self._case_factor
        factor *= self.script.factor.get(self._labels.get("algorithm", ""), 1.0) * self._noise()
        began = self.now_us
        for peer, payloads in sends.items():
            link = self.layout.link(self.rank, peer)
            for payload in payloads:
                took_us = self.script.alpha_us[link] + len(payload) / self.script.gbps[link] / 1e3
                self.now_us += factor * self._slowed(peer) * took_us
                if self.counting:
                    self.log.append((step, self.rank, peer, len(payload)))
        slowness = self.script.slow_ranks.get(str(self.rank), 1.0)
        self.now_us = began + (self.now_us - began) * slowness
        stamp = np.float64(self.now_us).tobytes()
        arrived = self.mesh.exchange({peer: b"".join([stamp, *parts]) for peer, parts in sends.items()}, list(sources))
        got = {}
        loads: dict[LinkClass, int] = dict.fromkeys(LINK_CLASSES, 0)
        last_us = began
        for peer, data in arrived.items():
            last_us = max(last_us, float(np.frombuffer(data[:8])[0]))
            self.now_us = max(self.now_us, last_us)  # not before it was sent
            got[peer] = data[8:]
            loads[self.layout.link(self.rank, peer)] += len(data) - 8
        for link, nbytes in loads.items():  # nor faster than this rank's own link brings it
            self.now_us = max(self.now_us, began + factor * nbytes / self.script.gbps[link] / 1e3)
        if slowness != 1 and arrived:  # what it gets takes it longer, too
            self.now_us = max(self.now_us, began + (last_us - began) * slowness)
        if self.script.jitter_us:
            self.now_us += self._random.expovariate(1 / self.script.jitter_us)
        if self.script.pace_us:
            time.sleep(self.script.pace_us / 1e6)
        faulty = self._spoil(step, got, {peer: sizes[-1] for peer, sizes in sources.items()})
        self._operations += 1
        return faulty

    def _noise(self) -> float:
        """Draw the noise of one operation: lognormal, with memory if the script says so, and now and then a spike."""
        script = self.script
        if script.noise:
            rho = script.autocorrelation
            self._wander = rho * self._wander + math.sqrt(1 - rho * rho) * self._random.gauss(0, script.noise)
        spike = bool(script.spikes) and self._random.random() < script.spikes.get("chance", 0.0)
        return math.exp(self._wander) * (script.spikes.get("factor", 1.0) if spike else 1.0)

    def _slowed(self, peer: int) -> float:
        """Return by how much the links to global rank `peer` multiply the time of a message."""
        factor = 1.0
        for link in self.script.slow_links:
            if "node" in link:
                inside = self.layout.link(self.rank, peer) == "intra"
                ends = {"out": [self.layout.node(self.rank)], "in": [self.layout.node(peer)]}
                ends["both"] = ends["out"] + ends["in"]
                if not inside and link["node"] in ends[link.get("direction", "both")]:
                    factor = max(factor, link["factor"])
            elif link.get("from", self.rank) == self.rank and link.get("to", peer) == peer:
                factor = max(factor, link["factor"])
        return factor

    def _spoil(self, step: str, got: dict[int, bytes], lasts: Mapping[int, int]) -> dict[int, bytes]:
        """lasts: bytes of the last message of each payload. `swap` is of these alone, as what comes before may say
        whose they are, and then a swap of both changes nothing; of unequal ones it swaps what both have.
        """
        kind = self.fault("flip", "swap", "stale", "untouched", step=step)
        last = {peer: self._last.get((step, peer)) for peer in got}
        for peer, data in got.items():
            self._last[step, peer] = data
        if kind is None or not got:
            return got
        if kind == "untouched":
            return {}
        if kind == "stale":
            return {peer: data for peer, data in last.items() if data is not None}
        first, *others = sorted(got)
        if kind == "flip":
            spoilt = bytearray(got[first])
            spoilt[len(spoilt) // 2] ^= 1
            return {**got, first: bytes(spoilt)}
        at = len(got[first]) - lasts[first]
        if others:
            there = len(got[others[0]]) - lasts[others[0]]
            common = min(lasts[first], lasts[others[0]])
            one, other = bytearray(got[first]), bytearray(got[others[0]])
            one[at : at + common], other[there : there + common] = other[there : there + common], one[at : at + common]
            return {**got, first: bytes(one), others[0]: bytes(other)}
        half = at + lasts[first] // 2
        return {first: got[first][:at] + got[first][half:] + got[first][at:half]}
