"""The data model: Case, Measurement, Row. Plain records that travel between stages as one JSON object a line."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from commbench.emulated import NOMINAL as NOMINAL
from commbench.emulated import RAILS, Emulated
from commbench.emulated import Fabric as Fabric
from commbench.emulated import network_note as network_note
from commbench.layout import Layout
from commbench.links import LinkRate, RateKind
from commbench.serialise import STORED_AS, as_dict, canonical, digest, digest_of_parts
from commbench.spec import DTYPES, Spec
from commbench.units import MOST_BYTES

# History of the run folder's format, after its first version:
# 2  cases have arguments of the collective, in_place, groups and overlap; rows have what follows from them
# 3  cases may be on an emulated fabric; measurements have the rates of links and what crossed them
# 4  cases may be on virtual hosts, in CUDA graphs, on registered and symmetric buffers; measurements have GPU clocks
# 5  ranks may be bound to CPUs and memory; measurements have the CPUs and memory that ranks really had
# 6  lines and whole files have checksums
FORMAT_VERSION = 6
READABLE = (3, 4, 5, 6)


# What ended the sampling, best known first; a row shows the worst of its launches.
STOP_REASONS = ("iters", "precision", "samples", "cap")


class Status(StrEnum):
    """How a case ended. Only `ok` has numbers."""

    OK = "ok"
    SKIPPED = "skipped"  # cannot run here; the reason says why
    WRONG_RESULT = "wrong_result"
    DECLARATION_MISMATCH = "declaration_mismatch"  # right, but other messages were sent than the algorithm declares
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    ERROR = "error"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Says how the ranks of a launch are started: the axes that need a launch of their own. In files it is `outer`."""

    transport: str
    nodes: int
    ranks_per_node: int
    env: dict[str, str] = field(default_factory=dict)
    script: str = ""  # of the scripted transport: its JSON
    emulated: Emulated | None = None  # the fabric, if it is not the real one
    virtual_hosts: bool = False  # whether NCCL is told that each node is a host of its own
    binding: str = "none"  # a policy of commbench.binding.policies
    cpu_masks: str = ""  # of binding=explicit: a list of CPUs for each rank of a host
    binding_memory: bool = True  # whether the binding is one of memory too

    @property
    def layout(self) -> Layout:
        return Layout(self.nodes, self.ranks_per_node)

    @functools.cached_property
    def identity(self) -> str:
        """Return what a set-up is told by, as JSON."""
        return canonical(_identity(as_dict(self)))

    @functools.cached_property
    def key(self) -> str:
        return digest(_identity(as_dict(self)))

    def __str__(self) -> str:
        env = "".join(f", {name}={value}" for name, value in self.env.items())
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        fabric = f", emulated: {self.emulated}" if self.emulated else ", virtual hosts" if self.virtual_hosts else ""
        bound = f", {self.binding_text}" if self.binding_text else ""
        return f"{self.transport}, {nodes} x {self.ranks_per_node} ranks{fabric}{bound}{env}"

    @property
    def binding_text(self) -> str:
        return binding_text(self.binding, self.cpu_masks, self.binding_memory)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How long to measure. `iters` fixes the number of samples and turns the adaptive stop off."""

    warmup: int
    iters: int | None
    samples_min: int
    samples_max: int
    precision: float  # relative half-width of the median's 95 % interval within a launch
    cap_s: float  # seconds of one measurement, warm-ups included
    launches: int

    @functools.cached_property
    def identity(self) -> str:
        return canonical(as_dict(self))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point to measure."""

    setup: Setup = field(metadata={STORED_AS: "outer"})
    collective: str
    algorithm: str
    params: dict[str, int] = field(default_factory=dict)  # of the algorithm
    arguments: dict[str, int | float | str] = field(default_factory=dict)  # of the collective
    in_place: bool = False
    groups: str = "world"
    overlap: str = "none"
    mode: str
    buffers: str
    cache: str
    dtype: str
    size_bytes: int
    seed: int
    policy: Policy

    @functools.cached_property
    def case_id(self) -> str:
        """Return an id that is the same for the same measurement, whenever and wherever it is made."""
        parts = {name: canonical(value) for name, value in self.__dict__.items() if name in _OWN}
        return digest_of_parts({**parts, "outer": self.setup.identity, "policy": self.policy.identity})

    @property
    def spec(self) -> Spec:
        """Return what each group is asked to do. Raises `ValueError` where the layout has no such groups."""
        return Spec(
            collective=self.collective,
            dtype=self.dtype,
            size_bytes=self.size_bytes,
            layout=self.setup.layout.within(self.groups),
            params=self.params,
            arguments=self.arguments,
            in_place=self.in_place,
            buffers=self.buffers,
        )

    @property
    def label(self) -> str:
        """Return the algorithm with its parameters: `pairwise window=2`."""
        return _label(self.algorithm, self.params)


# Fields of a case that are no records of their own.
_OWN = frozenset(item.name for item in fields(Case)) - {"setup", "policy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCase:
    """A case of a plan, and why it cannot run here, if so."""

    case: Case
    skip: str = ""  # why it cannot run, if so


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One case in one launch: the unit of storage and of resume."""

    case_id: str
    launch: int
    attempt: str  # which process group measured it; names the file that holds its samples
    order: int  # its place in that process group
    status: Status
    reason: str = ""
    warmup: int = 0
    samples: int = 0
    checked_calls: int | None = None  # whose output was compared since timing began; null in files of old versions
    calls_per_sample: int = 0
    time_us: float | None = None  # median over samples of the maximum over ranks
    time_us_mean: float | None = None  # median over samples of the mean over ranks
    time_us_p95: float | None = None
    host_us: float | None = None  # median over samples of the maximum over ranks
    skew_us: float | None = None  # median over samples, first to last rank leaving the barrier; null on several hosts
    stop_reason: str = ""
    wrong: int | None = None
    scratch_bytes: int = 0
    buffer_pairs: int = 0
    elapsed_s: float = 0.0
    # Where something is computed beside the collective: medians over samples of the maximum over ranks.
    comm_alone_us: float | None = None
    compute_alone_us: float | None = None
    compute_beside_us: float | None = None
    comm_slowdown: float | None = None  # medians over samples: see `measure.beside_ratios`
    compute_slowdown: float | None = None
    overlap_percent: float | None = None
    links: dict[str, LinkRate] | None = None  # known rates, by class of link
    fabric: str = ""
    # Read back: lists of CPUs and of the NUMA nodes to which memory is bound, by rank; one for all who have the same.
    rank_cpus: list[str] | None = None
    rank_memory: list[str] | None = None
    cpu_percent: float | None = None  # of the CPUs that ranks may use: busy while samples were taken, whoever it was
    preempted: int | None = None  # samples in which a rank was switched out against its will
    load_average: float | None = None  # of the last minute, on rank 0's host, after the samples
    clock_mhz: float | None = None  # of the slowest GPU, right after the timed calls
    slowed_ranks: list[int] | None = None  # whose GPUs were then held back: their files in logs/ say by what
    # Emulated, by the links' counters: bytes per call that left all nodes, headers included; busiest / mean.
    wire_bytes: float | None = None
    spine_bytes: float | None = None
    link_imbalance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One finished case, over all its launches: what `--format json` prints."""

    case_id: str
    status: Status
    reason: str
    collective: str
    arguments: dict[str, int | float | str] = field(default_factory=dict)  # of the collective; files as a digest
    in_place: bool = False
    algorithm: str
    params: dict[str, int]
    transport: str
    mode: str
    buffers: str
    cache: str
    dtype: str
    size_bytes: int
    ranks: int
    nodes: int
    groups: str = "world"
    group_size: int = 0  # ranks in one group
    overlap: str = "none"
    fabric: str  # what is between the nodes: see `Fabric`
    link: str = ""  # of an emulated fabric: the rate of each link, and what follows as in `Emulated`
    message_overhead: int = 0
    spines: int = 0
    routing: str = ""
    intra_link: str = ""
    slow_link: str = ""
    spine_rate: str = ""
    env: dict[str, str]
    binding: str = "none"
    cpu_masks: str = ""
    binding_memory: bool = True
    rank_cpus: str = ""  # read back: the CPUs of every rank, or one list for all; "" where nobody looked
    rank_memory: str = ""  # and the NUMA nodes to which its memory was bound; "-" for a rank's that was not
    launches: int
    samples: int
    checked_calls: int | None = None  # whose output was compared since timing began, of all launches
    time_us: float | None
    time_us_low: float | None
    time_us_high: float | None
    interval_of: str | None
    time_us_mean: float | None
    time_us_p95: float | None
    host_us: float | None
    skew_us: float | None
    calls_per_sample: int | None
    algbw_gbps: float | None
    busbw_gbps: float | None
    bound_gbps: float | None
    bound_fraction: float | None
    bound_us: float | None = None  # the least time that known links allow the collective
    bound_kind: RateKind = ""  # who says their rates: nominal, declared, measured; "": no bound, or an old run folder
    steps_us: float | None = None  # and this algorithm, whose messages they have to carry
    mean_bytes: float | None = None  # where ranks differ: the mean of what they send
    busbw_mean_gbps: float | None = None  # busbw of the mean
    comm_alone_us: float | None = None
    compute_alone_us: float | None = None
    compute_beside_us: float | None = None
    comm_slowdown: float | None = None
    compute_slowdown: float | None = None
    overlap_percent: float | None = None
    inter_bytes: int | None
    intra_bytes: int | None
    payload_bytes: int | None = None  # where elements travel as a payload: what `size_bytes` are then
    payload_error: float | None = None  # largest error of a value, by the largest magnitude of its block
    # Of dispatch and combine: rows a token by what each is for, own rank and node included; rows of the busiest rank.
    rows_choice: float | None = None
    rows_rank: float | None = None
    rows_node: float | None = None
    skew: float | None = None
    tokens_per_s: float | None = None  # of all ranks
    logical_rank_gbps: float | None = None  # as DeepEP counts: a row for each (token, rank), of the busiest rank
    logical_node_gbps: float | None = None  # and for each (token, node), of the busiest sender
    wire_inter_gbps: float | None = None  # what the busiest direction of a node, and of a rank inside one, carries
    wire_intra_gbps: float | None = None
    wire_bytes: float | None = None
    spine_bytes: float | None = None
    link_imbalance: float | None = None
    cpu_percent: float | None = None
    preempted: int | None = None  # samples in which a rank was switched out against its will, of all launches
    load_average: float | None = None  # of the last minute, after the samples
    scratch_bytes: int
    wrong: int | None
    stop_reason: str | None

    @property
    def label(self) -> str:
        return _label(self.algorithm, self.params)

    @property
    def emulation(self) -> tuple[str | int, ...]:
        """Return the settings of an emulated fabric; all empty on another."""
        return (
            self.link, self.message_overhead, self.spines, self.routing, self.intra_link, self.slow_link,
            self.spine_rate,
        )  # fmt: skip

    @property
    def binding_text(self) -> str:
        return binding_text(self.binding, self.cpu_masks, self.binding_memory)

    @property
    def what(self) -> str:
        """Return the collective and all that it was asked, but what follows the size: `all_reduce op=max in place`.

        Nor has it the round of a schedule: all rounds together are what was asked.
        """
        asked = [f"{key}={value}" for key, value in self.arguments.items() if key not in ("send_bytes", "round")]
        return " ".join([self.collective, *asked, *(["in place"] if self.in_place else [])])


# Fields of `Setup` that version 3 did not know, and what they were then.
_LATER = {"virtual_hosts": False, "binding": "none", "cpu_masks": "", "binding_memory": True}


def _identity(setup: dict[str, Any]) -> dict[str, Any]:
    """Drop what version 3 did not know, where it is what it was then: the same set-up keeps its name."""
    if emulated := setup["emulated"]:
        unknown = [*(["slow_link"] if not emulated["slow_link"] else []), *([] if emulated["spine_rate"] else RAILS)]
        setup = {**setup, "emulated": {key: value for key, value in emulated.items() if key not in unknown}}
    return {key: value for key, value in setup.items() if key not in _LATER or value != _LATER[key]}


def binding_text(binding: str, cpu_masks: str, binding_memory: bool) -> str:
    """Return `binding=pci`, `binding=explicit 0-3;4-7`, `binding=block CPUs only`; "" for none."""
    if binding == "none":
        return ""
    words = [f"binding={binding}", cpu_masks, "" if binding_memory else "CPUs only"]
    return " ".join(word for word in words if word)


def _label(algorithm: str, params: dict[str, int]) -> str:
    return " ".join([algorithm, *(f"{key}={value}" for key, value in params.items())])


MOST_RANKS, _MOST_LAUNCHES = 2**20, 10_000  # of anything that was ever planned


def check_case(case: Case) -> None:
    """Raise `ValueError` for what nobody can have planned, though each value is of its type."""
    setup, policy = case.setup, case.policy
    _between("nodes", setup.nodes, 1, MOST_RANKS)
    _between("ranks_per_node", setup.ranks_per_node, 1, MOST_RANKS // setup.nodes)
    _between("size_bytes", case.size_bytes, 0, MOST_BYTES)
    _between("launches", policy.launches, 1, _MOST_LAUNCHES)
    _between("cap_s", policy.cap_s, 0, 1e6)
    _between("seed", case.seed, 0, 2**63)
    if setup.emulated is not None and setup.emulated.nodes != setup.nodes:
        raise ValueError(f"an emulated fabric of {setup.emulated.nodes} nodes in a set-up of {setup.nodes}")
    if case.dtype not in DTYPES:
        raise ValueError(f"field 'dtype' is {case.dtype!r}, expected one of {', '.join(DTYPES)}")


def check_measurement(measurement: Measurement) -> None:
    """Raise `ValueError` as `check_case` does."""
    name, found = measurement.attempt, measurement
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"field 'attempt' is {name!r}, which names no launch")
    _between("launch", found.launch, 0, _MOST_LAUNCHES)
    if found.status is Status.OK:
        if found.time_us is None or not found.time_us > 0:
            raise ValueError(f"field 'time_us' is {found.time_us!r} of a measurement that is ok")
        if found.stop_reason not in STOP_REASONS:
            raise ValueError(f"field 'stop_reason' is {found.stop_reason!r}, expected one of {STOP_REASONS}")
    for link in (found.links or {}).values():
        _between("gbps", link.gbps, 1e-9, 1e9)


def check_row(row: Row) -> None:
    """Raise `ValueError` as `check_case` does."""
    _between("ranks", row.ranks, 1, MOST_RANKS)
    _between("nodes", row.nodes, 1, row.ranks)
    _between("size_bytes", row.size_bytes, 0, MOST_BYTES)
    if row.status is Status.OK and (row.time_us is None or not row.time_us > 0 or row.algbw_gbps is None):
        raise ValueError(f"field 'time_us' is {row.time_us!r} of a row that is ok")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"field {name!r} is {value}, expected {low:g} to {high:g}")
