"""Who else is at work: the CPU time that others take in a short window."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from commbench.doctor.finding import Finding, note, numbers, ok, plural, some, warn
from commbench.doctor.system import System

_WINDOW_S = 0.3
_SHOWN = 3
_SMALL = 0.05  # CPUs: below this a process is not named
_LEAST, _LEAST_SHARE = 0.25, 0.02  # CPUs, and of all CPUs: below this others are no trouble
_IDLE_CLASS = "5"  # SCHED_IDLE: runs when nobody else wants the CPU, so that ranks do not wait for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """A process that takes CPU time."""

    pid: int
    name: str
    cpus: float  # its time over the window's

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}) {self.cpus:.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLoad:
    """What others take of a machine's CPUs. Those that yield to ranks do not count: see `_Process.yields`."""

    cpus: int
    average: float  # the kernel's, of the last minute
    others: float  # CPUs
    busiest: tuple[Busy, ...]  # first ones first

    @property
    def much(self) -> bool:
        return much(self.others, self.cpus)

    def __str__(self) -> str:
        text = f"others use {self.others:.1f} of {plural(self.cpus, 'CPU')} now, load average {self.average:.2f}"
        return f"{text}: {some(list(map(str, self.busiest)), _SHOWN)}" if self.much and self.busiest else text


def much(others: float, cpus: int) -> bool:
    """Return whether ranks have to wait for others who take so much of so many CPUs."""
    return others > max(_LEAST, _LEAST_SHARE * cpus)


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    name: str
    ticks: int
    idle: bool
    nice: int

    def yields(self, nice: int) -> bool:
        """Return whether it gives way to a process of that nice value: it is of the idle class, or nicer."""
        return self.idle or self.nice > nice


def load(system: System) -> Finding:
    found = look(system)
    if found.much:
        return warn(
            str(found),
            "ranks wait for a CPU, and a collective waits for its slowest rank",
            "end what you can, wait for the rest, or take fewer ranks than CPUs",
        )
    if found.average > 0.5 * found.cpus:
        return note(
            str(found),
            "the load average is of the last minute: something has just ended, or comes and goes",
            "look again soon",
        )
    return ok(str(found))


def look(system: System, *, parent: int | None = None, window_s: float = _WINDOW_S) -> CpuLoad:
    """Return what others do while this process waits for a moment. Raises OSError where that cannot be read.

    parent: of a launch that this process is a rank of. What it started, the processes above this one, and those that
    were started beside it, are no others then.
    """
    cpus = len(numbers(system.read("/sys/devices/system/cpu/online")))
    average = float(system.read("/proc/loadavg").split()[0])
    total, busy, before = _ticks(system)
    system.wait(window_s)
    total_after, busy_after, after = _ticks(system)
    # All CPUs tick at once, so ticks of a process in terms of one CPU's are CPUs, whatever the length of a tick.
    window = max(1.0, (total_after - total) / cpus)
    ours = {system.pid} if parent is None else _kin(after, system.pid, parent)
    used = {pid: (one.ticks - before[pid].ticks) / window for pid, one in after.items() if pid in before}
    nice = after[system.pid].nice if system.pid in after else 0
    trouble = {pid for pid in used if pid not in ours and not after[pid].yields(nice)}
    without = sum(share for pid, share in used.items() if pid not in trouble)
    most = [Busy(pid=pid, name=after[pid].name, cpus=share) for pid, share in used.items()
            if share > _SMALL and pid in trouble]  # fmt: skip
    return CpuLoad(
        cpus=cpus,
        average=average,
        others=max(0.0, (busy_after - busy) / window - without),
        busiest=tuple(sorted(most, key=lambda one: (-one.cpus, -one.pid))),
    )


def _kin(processes: Mapping[int, _Process], me: int, parent: int) -> Collection[int]:
    """Return the processes of this launch, and those above it."""
    above: list[int] = []
    at = processes[me].parent if me in processes else 0
    while at > 1 and at in processes and at not in above:
        above.append(at)
        at = processes[at].parent
    roots = {*above[:1], parent} - {0, 1}  # what started this rank, and what began the launch
    below = {me}
    while more := {pid for pid, one in processes.items() if one.parent in roots | below} - below:
        below |= more
    return {*below, *above, *roots}


def _ticks(system: System) -> tuple[int, int, dict[int, _Process]]:
    """Return ticks of all CPUs, those of them that were busy, and the processes by number."""
    # user nice system idle iowait irq softirq steal; what follows is contained in user and nice
    every = [int(word) for word in system.read("/proc/stat").splitlines()[0].split()[1:9]]
    processes = {}
    for pid in filter(str.isdigit, system.names("/proc")):
        # pid (name, in which anything may stand) state ppid ..; 14 utime, 15 stime, 19 nice, 41 policy
        before, _, after = (system.text(f"/proc/{pid}/stat") or "").rpartition(")")
        fields = after.split()
        if len(fields) > 12:  # it may have ended meanwhile
            processes[int(pid)] = _Process(
                parent=int(fields[1]),
                name=before.partition("(")[2],
                ticks=int(fields[11]) + int(fields[12]),
                idle=len(fields) > 38 and fields[38] == _IDLE_CLASS,
                nice=int(fields[16]) if len(fields) > 16 else 0,
            )
    return sum(every), sum(every) - every[3] - every[4], processes
