"""What the kernel lets this process have of CPUs and memory: set, and read back. Linux only.

libc has no wrapper for memory policies (libnuma has), so they are system calls by number.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commbench.binding.policies import Placement
from commbench.errors import EnvironmentProblem
from commbench.machine import cpulist

# set_mempolicy, get_mempolicy; linux/arch/*/entry/syscalls and include/uapi/asm-generic/unistd.h
_SYSCALLS = {"x86_64": (238, 239), "aarch64": (237, 236)}
_DEFAULT, _BIND = 0, 2
_MODES = {0: "default", 1: "preferred", 2: "bind", 3: "interleave", 4: "local", 5: "preferred_many", 6: "weighted"}
_NODES = 1024  # the kernel has no more, and takes no mask that is shorter than its own
_MOST_CPUS = 8192  # nor of these
_libc = ctypes.CDLL(None, use_errno=True)
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActualBinding:
    """Says what the kernel lets this process have, as it was read back."""

    cpus: tuple[int, ...]  # of the thread that asks
    threads: dict[str, int]  # of the whole process: list of CPUs -> how many threads have it
    memory: str  # bind, default, ...; "" where the kernel does not tell
    memory_nodes: tuple[int, ...]
    reason: str = ""  # why it does not

    def describe(self) -> dict[str, Any]:
        return {
            "cpus": cpulist.text(self.cpus),
            "threads": self.threads,
            "memory": self.memory or self.reason,
            "memory_nodes": cpulist.text(self.memory_nodes),
        }


def limit() -> tuple[int, ...]:
    """Return the CPUs that the kernel would give this thread, whatever it has been pinned to: those of its cpuset."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, range(_MOST_CPUS))
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, before)
    except OSError:  # a sandbox that forbids it
        return tuple(sorted(before))
    return tuple(sorted(allowed))


def allowed_memory() -> tuple[int, ...] | None:
    """Return the NUMA nodes whose memory this process may use; None where the kernel does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        (words,) = (line.partition(":")[2] for line in lines if line.startswith("Mems_allowed_list:"))
        return cpulist.parse(words.strip())
    except (OSError, ValueError):
        return None


def unsupported_memory_policy() -> str:
    """Return in words why the kernel would set no memory policy, "" if it would. Changes nothing."""
    answer: list[str] = []
    # The policy is that of a thread, and ends with it.
    thread = threading.Thread(target=lambda: answer.append(_set_memory(())))
    thread.start()
    thread.join()
    return answer[0]


def apply(policy: str, placement: Placement) -> ActualBinding:
    """Move all threads of this process, and the memory of what this thread allocates or starts from now on.

    What is allocated stays where it is. Raises `EnvironmentProblem` where that did not happen, or where somebody else
    has pinned this process to less: who started it so meant something by it.
    """
    pinned = os.sched_getaffinity(0)
    if not pinned.issuperset(placement.cpus):
        raise EnvironmentProblem(
            f"binding={policy} wants CPUs {cpulist.text(placement.cpus)} for a rank that was started pinned to "
            f"{cpulist.text(pinned)}",
            hint="start ranks unpinned (mpiexec --bind-to none, srun --cpu-bind=none, no taskset), or use binding=none",
        )
    _set_cpus(placement.cpus)
    if placement.memory_nodes is not None and (refused := _set_memory(placement.memory_nodes)):
        raise memory_problem(policy, refused)
    actual = read()
    check(policy, placement, actual, "right after it was set")
    return actual


def memory_problem(policy: str, refused: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"binding={policy} binds memory as well, and the kernel refuses: {refused}",
        hint="bind CPUs alone: binding_memory=off. Containers often forbid set_mempolicy; docker run "
        "--cap-add=SYS_NICE allows it",
    )


def check(policy: str, placement: Placement, actual: ActualBinding, when: str, *, strangers: bool = False) -> None:
    """Raise `EnvironmentProblem` that says what was asked and what is, unless that is the same.

    With `strangers` other threads may be elsewhere: NCCL places its own, beside the GPU.
    """
    wanted = cpulist.text(placement.cpus)
    if actual.cpus != placement.cpus:
        raise _differs(policy, f"CPUs {wanted}", f"CPUs {cpulist.text(actual.cpus)}", when)
    outside = {cpus: count for cpus, count in actual.threads.items() if not set(cpulist.parse(cpus)) <= {*actual.cpus}}
    if outside and not strangers:
        elsewhere = ", ".join(f"{count} on CPUs {cpus}" for cpus, count in outside.items())
        raise _differs(
            policy, f"CPUs {wanted} for all threads", f"of {sum(actual.threads.values())} threads {elsewhere}", when
        )
    if placement.memory_nodes is None:
        return
    asked = f"memory bound to nodes {cpulist.text(placement.memory_nodes)}"
    if not actual.memory:
        raise _differs(policy, asked, f"not known, the kernel does not say ({actual.reason})", when)
    if (actual.memory, actual.memory_nodes) != (_MODES[_BIND], placement.memory_nodes):
        nodes = f" of nodes {cpulist.text(actual.memory_nodes)}" if actual.memory_nodes else ""
        raise _differs(policy, asked, f"policy {actual.memory}{nodes}", when)


def _differs(policy: str, asked: str, actual: str, when: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"binding={policy} did not take effect: asked for {asked}, {when} it is {actual}",
        hint="something else places this process: its launcher, the MPI library, a container's cpuset, or a tool",
    )


def read() -> ActualBinding:
    """Return the CPUs of every thread of this process, and the memory policy of this one."""
    threads: dict[str, int] = {}
    for thread in _threads():
        try:
            cpus = cpulist.text(os.sched_getaffinity(thread))
        except ProcessLookupError:  # it has ended meanwhile
            continue
        threads[cpus] = threads.get(cpus, 0) + 1
    own = tuple(sorted(os.sched_getaffinity(0)))
    mode, mask = ctypes.c_int(), (ctypes.c_ulong * (_NODES // 64))()
    reason = _call(1, ctypes.byref(mode), mask, ctypes.c_ulong(_NODES), None, ctypes.c_ulong(0))
    nodes = tuple(node for node in range(_NODES) if mask[node // 64] >> node % 64 & 1)
    name = "" if reason else _MODES.get(mode.value & 0xFF, str(mode.value))  # above are flags
    return ActualBinding(cpus=own, threads=threads, memory=name, memory_nodes=nodes, reason=reason)


def _threads() -> list[int]:
    return [int(path.name) for path in _TASKS.iterdir()]


def _set_cpus(cpus: Collection[int]) -> None:
    """Set the CPUs of every thread there is. Those that come later inherit from whoever starts them."""
    done: set[int] = set()
    while left := set(_threads()) - done:
        for thread in left:
            try:
                os.sched_setaffinity(thread, cpus)
            except ProcessLookupError:
                pass
            except OSError as error:  # what is then read back tells the rest
                os.write(2, f"CPUs {cpulist.text(cpus)} for thread {thread}: {error.strerror}\n".encode())
            done.add(thread)


def _set_memory(nodes: Collection[int]) -> str:
    """Bind what this thread allocates to `nodes`, or undo that if there are none. Why not, in words; "" if so."""
    mask = (ctypes.c_ulong * (_NODES // 64))()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    return _call(0, ctypes.c_int(_BIND if nodes else _DEFAULT), mask if nodes else None, ctypes.c_ulong(_NODES))


def _call(which: int, *arguments: Any) -> str:
    """Make a system call by its place in `_SYSCALLS`; return its error, or ""."""
    numbers = _SYSCALLS.get(platform.machine())
    if numbers is None:
        return f"commbench does not know this system call on {platform.machine()}"
    if _libc.syscall(ctypes.c_long(numbers[which]), *arguments) == 0:
        return ""
    name = ("set_mempolicy", "get_mempolicy")[which]
    return f"{name}: {os.strerror(ctypes.get_errno())}"
