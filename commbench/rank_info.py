"""Which rank am I? One function of an environment mapping, and one table of what each launcher sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from commbench.errors import EnvironmentProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Says which rank a process is; `local_size` is the number of ranks on its host."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str  # as in commbench.launch.TABLE
    started_by: str = ""  # the launcher by the name that its users know, for messages
    # How to find the other ranks: "env://" (MASTER_ADDR, MASTER_PORT), or in a file that they share: "file:PATH" is a
    # store itself, "address:PATH" will say where rank 0 listens. A library that knows its ranks needs none.
    rendezvous: str = "env://"


@dataclass(frozen=True, slots=True)
class Convention:
    """Names what one launcher sets: its marks (all of them), then rank, size, local rank and local size."""

    launcher: str
    started_by: str
    marks: tuple[str, ...]
    variables: tuple[str, str, str, str]

    def marked(self, environ: Mapping[str, str]) -> bool:
        return all(mark in environ for mark in self.marks)


TORCHRUN = Convention(
    "torchrun", "torchrun", ("TORCHELASTIC_RUN_ID",), ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
)
MPI = (
    Convention(
        "mpiexec",
        "Open MPI's mpiexec",
        ("OMPI_COMM_WORLD_SIZE",),
        (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
    ),
    # PMI_SIZE alone is no mark: srun --mpi=pmi2 and other launchers set it too, but no place on the host.
    Convention(
        "mpiexec",
        "MPICH's or Intel MPI's mpiexec",
        ("PMI_SIZE", "MPI_LOCALRANKID"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ),
    Convention(
        "mpiexec",
        "MVAPICH's mpiexec",
        ("MV2_COMM_WORLD_SIZE",),
        ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ),
)
# Without a step, SLURM_PROCID is that of sbatch's shell. SLURM_NTASKS may be the job's: salloc opens its shell in a
# step of one task, and leaves it so. The last one is a list of tasks by node.
SRUN = Convention(
    "slurm",
    "srun",
    ("SLURM_PROCID", "SLURM_STEP_ID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)
_PTY = "SLURM_PTY_PORT"  # set by srun --pty, in the shell that it opens and in what that starts
# What torch's env:// needs, and deepspeed, PyTorchJob and people's own scripts set.
ENVIRONMENT = Convention("torchrun", "a launcher that sets RANK", ("RANK", "WORLD_SIZE"), TORCHRUN.variables)
_DEEPSPEED_LOCAL_SIZE = "LOCAL_SIZE"
# Set by more launchers than are known here; each says that this process is one of several, unless that many are one.
_STRAYS = {
    "PMI_RANK": "",
    "PMIX_RANK": "",
    "PALS_RANKID": "",
    "FLUX_TASK_RANK": "FLUX_JOB_SIZE",
    "JSM_NAMESPACE_RANK": "JSM_NAMESPACE_SIZE",
}


def typed_at_prompt() -> bool:
    """Return whether somebody typed this command into a shell: that gives each command a process group of its own.

    What a launcher starts on a terminal, and scripts in it, are in the group that the session began with.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:  # no terminal
        return False
    try:
        return os.getpgrp() == os.tcgetpgrp(terminal) != os.getsid(0)
    except OSError:
        return False
    finally:
        os.close(terminal)


def detect(environ: Mapping[str, str], typed: Callable[[], bool] = typed_at_prompt) -> RankInfo | None:
    """Return this process's rank under the launcher that started it, or None if none did.

    The innermost launcher wins: torchrun over MPI, whose ranks it may be started by, and MPI over Slurm, whose srun
    starts the helpers of mpiexec. RANK and WORLD_SIZE, which anybody may set, must say the same as MPI and Slurm.
    Raises `EnvironmentProblem` where variables are missing, are no numbers or contradict each other, and where an
    unknown launcher is at work: to go on would be a sweep per rank. typed: whether somebody types at a prompt.
    """
    if TORCHRUN.marked(environ):
        return _read(TORCHRUN, environ)
    found = [_read(convention, environ) for convention in MPI if convention.marked(environ)]
    step = _step(environ) if SRUN.marked(environ) else None
    # A step of one task is how Slurm opens an interactive shell. srun --pty -n 4 bash opens one too: of its tasks only
    # the first has a terminal, and the others have ended by the time that somebody types.
    shell = step is not None and (step.size == 1 or (_PTY in environ and typed()))
    if not found and step and not shell:
        found = [step]
    if ENVIRONMENT.marked(environ) and environ["WORLD_SIZE"] != "1":
        found.append(_environment(environ, found))
    for other in found[1:]:
        _compare(found[0], other)
    if found and found[0] is not step:
        return found[0]
    strays = {name: environ[name] for name, size in _STRAYS.items() if name in environ and environ.get(size) != "1"}
    if strays and not (step and _set_by_srun(step, strays, environ)):
        shown = ", ".join(f"{name}={value}" for name, value in strays.items())
        raise EnvironmentProblem(
            f"{shown}: an unknown launcher seems to have started this process",
            hint="start ranks with torchrun, mpiexec or srun, or let commbench start them (--launcher); "
            f"if these are left over, unset {' '.join(strays)}",
        )
    return None if shell else step


def _environment(environ: Mapping[str, str], found: Sequence[RankInfo]) -> RankInfo:
    """Return the rank that RANK and WORLD_SIZE name. Where a launcher is known, they need not say where it is."""
    if found:
        rank, size = (_number(ENVIRONMENT, environ, name) for name in ENVIRONMENT.marks)
        return replace(found[0], rank=rank, size=size, started_by=ENVIRONMENT.started_by)
    if "LOCAL_WORLD_SIZE" not in environ and _DEEPSPEED_LOCAL_SIZE in environ:
        environ = {**environ, "LOCAL_WORLD_SIZE": environ[_DEEPSPEED_LOCAL_SIZE]}
    needed = (*ENVIRONMENT.variables, "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if not environ.get(name)]:
        raise EnvironmentProblem(
            f"RANK={environ['RANK']} and WORLD_SIZE={environ['WORLD_SIZE']} say that this process is one of several, "
            f"but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            hint="set them for each process (one process a host is LOCAL_RANK=0 LOCAL_WORLD_SIZE=1), start ranks with "
            "torchrun, or, if these are left over, unset RANK WORLD_SIZE",
        )
    return _read(ENVIRONMENT, environ)


def _set_by_srun(step: RankInfo, strays: Mapping[str, str], environ: Mapping[str, str]) -> bool:
    """Return whether it was srun: with --mpi=pmi2 or pmix it sets such variables too, with the values of the step."""
    size = environ.get("PMI_SIZE", str(step.size))
    return size == str(step.size) and all(value == str(step.rank) for value in strays.values())


def _compare(first: RankInfo, second: RankInfo) -> None:
    if (first.rank, first.size) != (second.rank, second.size):
        raise EnvironmentProblem(
            f"{first.started_by} says rank {first.rank} of {first.size}, "
            f"{second.started_by} says rank {second.rank} of {second.size}",
            hint="one was probably started inside the other, or with its variables; start ranks with one of them only",
        )


def _read(convention: Convention, environ: Mapping[str, str]) -> RankInfo:
    *numbers, local_size = (_number(convention, environ, name) for name in convention.variables)
    return _checked(convention, *numbers, local_size=local_size)


def _step(environ: Mapping[str, str]) -> RankInfo:
    """Return the task of a Slurm step that this process is."""
    rank, size, local_rank, by_node = SRUN.variables
    if size not in environ:
        size = "SLURM_NTASKS"
    if by_node in environ:
        local_size = _tasks_on_node(environ, by_node, _number(SRUN, environ, "SLURM_NODEID"))
    else:
        local_size = _number(SRUN, environ, "SLURM_NTASKS_PER_NODE")
    numbers = (_number(SRUN, environ, name) for name in (rank, size, local_rank))
    return _checked(SRUN, *numbers, local_size=local_size)


def _tasks_on_node(environ: Mapping[str, str], name: str, node: int) -> int:
    """Read a list of tasks by node: `4(x2),3` means 4, 4 and 3."""
    counts: list[int] = []
    try:
        for part in environ[name].split(","):
            count, _, times = part.rstrip(")").partition("(x")
            counts += [int(count)] * int(times or 1)
        return counts[node]
    except (ValueError, IndexError):
        raise _unusable(SRUN, environ, name) from None


def _number(convention: Convention, environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name)
    if text is None or not text.isdecimal():
        raise _unusable(convention, environ, name)
    return int(text)


def _checked(convention: Convention, rank: int, size: int, local_rank: int, *, local_size: int) -> RankInfo:
    if not rank < size or not local_rank < local_size <= size:
        raise EnvironmentProblem(
            f"{convention.started_by} says rank {rank} of {size}, local rank {local_rank} of {local_size}, "
            "which cannot be",
            hint="look for variables left over from another launcher",
        )
    return RankInfo(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        launcher=convention.launcher,
        started_by=convention.started_by,
    )


def _unusable(convention: Convention, environ: Mapping[str, str], name: str) -> EnvironmentProblem:
    marks = " and ".join(convention.marks)
    return EnvironmentProblem(
        f"{convention.started_by} seems to have started this process, because of {marks}, "
        f"but {name} is {environ.get(name)!r}",
        hint=f"start through {convention.started_by}, or unset {' '.join(convention.marks)}",
    )
