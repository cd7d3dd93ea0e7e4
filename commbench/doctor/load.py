"""Who else is at work: the CPU time that others take in a short window."""

from __future__ import annotations

from commbench.doctor.finding import Finding, note, numbers, ok, plural, warn
from commbench.doctor.system import System

_WINDOW_S = 0.3
_SHOWN = 3
_SMALL = 0.05  # CPUs: below this a process is not named


def load(system: System) -> Finding:
    cpus = len(numbers(system.read("/sys/devices/system/cpu/online")))
    average = float(system.read("/proc/loadavg").split()[0])
    total, busy, processes = _ticks(system)
    system.wait(_WINDOW_S)
    total_after, busy_after, processes_after = _ticks(system)
    # All CPUs tick at once, so ticks of a process in terms of one CPU's are CPUs, whatever the length of a tick.
    window = max(1.0, (total_after - total) / cpus)
    used = {key: (ticks - processes[key]) / window for key, ticks in processes_after.items() if key in processes}
    ours = sum(share for (pid, _), share in used.items() if pid == system.pid)
    others = max(0.0, (busy_after - busy) / window - ours)
    value = f"others use {others:.1f} of {plural(cpus, 'CPU')} now, load average {average:.2f}"
    if others > max(0.25, 0.02 * cpus):
        most = sorted(((share, pid, name) for (pid, name), share in used.items() if pid != system.pid), reverse=True)
        named = [f"{name} (pid {pid}) {share:.1f}" for share, pid, name in most[:_SHOWN] if share > _SMALL]
        return warn(
            value + (f": {', '.join(named)}" if named else ""),
            "ranks wait for a CPU, and a collective waits for its slowest rank",
            "end what you can, wait for the rest, or take fewer ranks than CPUs",
        )
    if average > 0.5 * cpus:
        return note(
            value,
            "the load average is of the last minute: something has just ended, or comes and goes",
            "look again soon",
        )
    return ok(value)


def _ticks(system: System) -> tuple[int, int, dict[tuple[int, str], int]]:
    """Return ticks of all CPUs, those of them that were busy, and those of each process by number and name."""
    # user nice system idle iowait irq softirq steal; what follows is contained in user and nice
    every = [int(word) for word in system.read("/proc/stat").splitlines()[0].split()[1:9]]
    processes = {}
    for pid in filter(str.isdigit, system.names("/proc")):
        # pid (name, in which anything may stand) state ppid ...; utime and stime are fields 14 and 15
        before, _, after = (system.text(f"/proc/{pid}/stat") or "").rpartition(")")
        fields = after.split()
        if len(fields) > 12:  # it may have ended meanwhile
            processes[int(pid), before.partition("(")[2]] = int(fields[11]) + int(fields[12])
    return sum(every), sum(every) - every[3] - every[4], processes
