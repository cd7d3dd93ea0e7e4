"""Memory, shared memory, swap, huge pages, and the limits of a process."""

from __future__ import annotations

import resource

from commbench.doctor.finding import Finding, ok, warn
from commbench.doctor.system import System
from commbench.machine import cgroup
from commbench.units import format_size

_MI = 1 << 20
_GI = 1 << 30
_FEW_FILES = 1024


def memory(system: System) -> Finding:
    total, free = _meminfo(system, "MemTotal"), _meminfo(system, "MemAvailable")
    value = f"{format_size(free)} available of {format_size(total)}"
    group = cgroup.memory_left(system)
    if group is not None:
        left, limit = group
        value += f"; {format_size(left)} left of a control group's {format_size(limit)}"
        free = min(free, left)
    if free < _GI:
        return warn(
            value,
            "each rank holds torch, some 200 MiB, and its buffers several times; beyond the limit ranks are killed",
            "end other programs, raise the limit (docker --memory, sbatch --mem), or measure smaller sizes",
        )
    return ok(value)


def shared_memory(system: System) -> Finding:
    total, free = system.space("/dev/shm")
    value = f"{format_size(free)} free of {format_size(total)}"
    if free < 256 * _MI:
        return warn(
            value,
            "MPI, NCCL and torch pass data between the ranks of a machine through it; they fail or take slower ways",
            "docker run --ipc=host or --shm-size=8g; in Kubernetes an emptyDir with medium: Memory; else look for "
            "leftovers in /dev/shm",
        )
    return ok(value)


def swap(system: System) -> Finding:
    total = _meminfo(system, "SwapTotal")
    if total == 0:
        return ok("none")
    used = total - _meminfo(system, "SwapFree")
    value = f"{format_size(used)} in use of {format_size(total)}"
    if used > _meminfo(system, "MemTotal") // 20:
        return warn(
            value,
            "memory is, or was, short; a page that must be read back takes milliseconds",
            "end other programs; then sudo swapoff -a",
        )
    return ok(value)


def huge_pages(system: System) -> Finding:
    """Say the setting: all of them are fine, but runs with different ones are not comparable."""
    text = system.read("/sys/kernel/mm/transparent_hugepage/enabled")
    return ok(text.partition("[")[2].partition("]")[0] or text)


def locked_memory(system: System) -> Finding:
    soft, _ = system.limit(resource.RLIMIT_MEMLOCK)
    if soft is None:
        return ok("no limit")
    value = f"at most {format_size(soft)}"
    if system.names("/sys/class/infiniband"):
        return warn(
            value,
            "RDMA pins its buffers: registration fails, or data is copied instead",
            "memlock unlimited in /etc/security/limits.conf; for Slurm LimitMEMLOCK=infinity of slurmd; "
            "docker run --ulimit memlock=-1",
        )
    return ok(f"{value}; only RDMA needs more")


def open_files(system: System) -> Finding:
    soft, hard = system.limit(resource.RLIMIT_NOFILE)
    if soft is None:
        return ok("no limit")
    if soft < _FEW_FILES:
        most = "unlimited" if hard is None else str(hard)
        return warn(
            f"at most {soft}",
            "each rank has a connection to every other one, and each is a file",
            f"ulimit -n {most}" if hard is None or hard > soft else "raise nofile in /etc/security/limits.conf",
        )
    return ok(f"at most {soft}")


def _meminfo(system: System, name: str) -> int:
    for line in system.read("/proc/meminfo").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/meminfo has no {name}")
