"""ProgramTrace: what a program has sent, and the checks of one that comes from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from commbench.serialise import STORED_AS

FORMAT, FORMAT_VERSION = "commbench-trace", 1
IMPORTED = "imported"  # among the versions: what has written the files that a trace was read from
MOST_RANKS = 100_000
MOST_LINES = 5_000_000  # of calls: more is no trace of ours
_MOST_BYTES = 2**50
_MOST_LETTERS = 1000  # of a site


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedGroup:
    """A process group of the program."""

    group: int  # by which calls name it
    name: str  # as torch describes it; "" where the program gives none
    ranks: list[int]  # ascending, as torch sorts them

    @property
    def stride(self) -> int | None:
        """Return the distance from one rank to the next; None where it is not the same everywhere."""
        steps = {b - a for a, b in zip(self.ranks, self.ranks[1:], strict=False)}
        return steps.pop() if len(steps) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCalls:
    """The calls of one kind that one rank has made. Times are totals in microseconds, None where nobody can see them.

    `setup_*` are the parts of `count` and the times that were over when the first step ended: connections are made
    there, and parameters handed out.
    """

    rank: int
    group: int
    collective: str  # the word of commbench where it has one, else torch's
    dtype: str
    nbytes: int = field(metadata={STORED_AS: "bytes"})  # max(bytes sent, bytes received) by this rank; see `merged`
    sent: list[int] | None  # of an uneven exchange: bytes to each rank of the group
    received: list[int] | None  # and from each
    async_op: bool = field(metadata={STORED_AS: "async"})
    site: str  # file:line of the program; "" where no line of its own called
    count: int
    host_us: float  # in the call that issues it
    device_us: float | None  # from its start to its end on a GPU
    wait_us: float | None  # that the program stood still for it after the call
    setup_count: int = 0
    setup_host_us: float = 0.0
    setup_device_us: float | None = None
    setup_wait_us: float | None = None
    sequences: list[int] | None = None  # of an uneven exchange: which ones of its group, of those that were kept
    merged: bool = False  # calls of several sizes, or splits, of one class of size: `nbytes` is their mean

    @property
    def steady_count(self) -> int:
        """Return the calls after the first step."""
        return self.count - self.setup_count


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedStep:
    """How long a step took on a rank. Step 0 began when the rank began to record."""

    rank: int
    step: int
    duration_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTrace:
    """What all ranks of a program have recorded."""

    ranks: int
    hosts: list[str]  # of each rank
    transport: str  # of the tensors that were sent: gloo, nccl
    gpu: str = ""
    fabric: dict[str, str | int] = field(default_factory=dict)  # keys of an emulated fabric; empty on a real one
    versions: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    created: str = ""
    status: str = "finished"  # or unfinished: what was written until then
    exit_code: int | None = None  # of the program
    anonymous: bool = False
    groups: list[TracedGroup]
    calls: list[TracedCalls]
    steps: list[TracedStep]

    @property
    def missing(self) -> list[int]:
        """Return the ranks that have left nothing."""
        return sorted({*range(self.ranks)} - {one.rank for one in self.calls} - {one.rank for one in self.steps})

    def step_us(self) -> float | None:
        """Return the mean duration of a step over ranks, without each rank's first one; None where no second ended."""
        times = [one.duration_us for one in self.steps if one.step > 0]
        return sum(times) / len(times) if times else None

    def step_count(self, rank: int) -> int:
        """Return how many steps a rank has ended."""
        return self._counts().get(rank, 0)

    def _counts(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for one in self.steps:  # long trainings keep some steps only, the last one always
            counts[one.rank] = max(counts.get(one.rank, 0), one.step + 1)
        return counts

    def layout(self) -> tuple[int, int]:
        """Return nodes and ranks on each: (ranks, 1) where ranks are not in equal blocks on their hosts."""
        runs: list[tuple[str, int]] = []
        for host in self.hosts:
            if runs and runs[-1][0] == host:
                runs[-1] = host, runs[-1][1] + 1
            else:
                runs.append((host, 1))
        lengths = {length for _, length in runs}
        if len(lengths) == 1 and len(runs) == len({*self.hosts}):
            return len(runs), lengths.pop()
        return self.ranks, 1


def check(trace: ProgramTrace) -> None:
    """Raise `ValueError`, in words, where a trace contradicts itself or has what no program can send."""
    if not 1 <= trace.ranks <= MOST_RANKS:
        raise ValueError(f"ranks is {trace.ranks}")
    if len(trace.hosts) != trace.ranks:
        raise ValueError(f"hosts are {len(trace.hosts)}, and ranks {trace.ranks}")
    for number, group in enumerate(trace.groups):
        if group.group != number:
            raise ValueError(f"group {number} calls itself {group.group}")
        if group.ranks != sorted({*group.ranks}) or not group.ranks or not _inside(group.ranks, trace.ranks):
            raise ValueError(f"the ranks of group {number} are {group.ranks[:8]}, of {trace.ranks}")
    for place, one in enumerate(trace.calls):
        if problem := _problem(one, trace):
            raise ValueError(f"calls, line {place}: {problem}")
    for place, step in enumerate(trace.steps):
        if not 0 <= step.rank < trace.ranks or step.step < 0 or not 0 <= step.duration_us < math.inf:
            raise ValueError(f"steps, line {place}: rank {step.rank}, step {step.step}, {step.duration_us} us")


def _inside(ranks: Sequence[int], size: int) -> bool:
    return all(0 <= rank < size for rank in ranks)


def _problem(one: TracedCalls, trace: ProgramTrace) -> str:
    """Return what is wrong with a line of calls; "" if nothing is."""
    if not 0 <= one.group < len(trace.groups):
        return f"group {one.group} is none of the {len(trace.groups)}"
    members = trace.groups[one.group].ranks
    if one.rank not in members:
        return f"rank {one.rank} is not in group {one.group}"
    if not (one.collective.isidentifier() and one.dtype.isidentifier()) or len(one.site) > _MOST_LETTERS:
        return f"collective {one.collective[:40]!r}, dtype {one.dtype[:40]!r}, site {one.site[:40]!r}"
    if not 0 <= one.nbytes <= _MOST_BYTES:
        return f"bytes is {one.nbytes}"
    if not 0 <= one.setup_count <= one.count or one.count < 1:
        return f"count is {one.count}, setup_count {one.setup_count}"
    times = (one.host_us, one.device_us, one.wait_us, one.setup_host_us, one.setup_device_us, one.setup_wait_us)
    if not all(time is None or 0 <= time < math.inf for time in times):
        return f"times are {times}"
    if (one.sent is None) != (one.received is None):
        return "sent without received, or the reverse"
    for name, splits in (("sent", one.sent), ("received", one.received)):
        if splits is not None and (len(splits) != len(members) or not all(0 <= n <= _MOST_BYTES for n in splits)):
            return f"{name} has {len(splits)} splits, group {one.group} {len(members)} ranks"
    if one.sent is not None and one.received is not None and one.nbytes != max(sum(one.sent), sum(one.received)):
        return f"bytes is {one.nbytes}, and its splits sum up to {sum(one.sent)} and {sum(one.received)}"
    return ""
