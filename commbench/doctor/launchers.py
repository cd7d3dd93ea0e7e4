"""MPI, and the programs that start ranks."""

from __future__ import annotations

import contextlib

from commbench.doctor.finding import Finding, fail, note, ok, plural, warn
from commbench.doctor.system import System
from commbench.errors import EnvironmentProblem

_INSTALL = "pip install mpi4py mpich; on a cluster load its MPI instead of mpich"
_NAMES = {"intel": "Intel MPI", "openmpi": "Open MPI", "mpich": "MPICH"}


def mpi4py(system: System) -> Finding:
    version = system.version("mpi4py")
    if version is None:
        return note("not installed", "only MPI needs it", _INSTALL)
    return ok(version)


def mpi_library(system: System) -> Finding | None:
    if system.version("mpi4py") is None:
        return None
    try:
        library = system.mpi_library
    except EnvironmentProblem as error:
        return fail(str(error), "mpi4py is installed, but nothing can be measured over MPI", error.hint or _INSTALL)
    # Open MPI's goes on with the package and its makers.
    return ok(f"{' '.join(library.version.partition(',')[0].split())}, {library.path}")


def mpiexec(system: System) -> Finding | None:
    path = system.which("mpiexec")
    wanted, own = "", ""
    if system.version("mpi4py") is not None:
        with contextlib.suppress(EnvironmentProblem):  # `mpi_library` tells of it
            wanted, own = system.mpi_library.family, system.mpi_library.mpiexec
    if path is None:
        if own:
            return ok(f"{own} (not on PATH; commbench finds it)")
        return note("not found", "it starts ranks over MPI", _INSTALL)
    family = system.mpi_family(system.run(path, "--version"))
    if family is None:
        return note(f"{path}, of an unknown MPI", "whether it fits the MPI library is unknown")
    value = f"{path}, of {_NAMES[family]}"
    if not wanted or family == wanted:
        return ok(value)
    value += f", but mpi4py loads {_NAMES[wanted]}"
    use = f"commbench itself starts {own}; where you type mpiexec, type that, or put its folder first on PATH"
    if "openmpi" in (family, wanted):
        return fail(value, "they do not understand each other: -n 4 starts four worlds of one rank each", use)
    return warn(value, "they are relatives and may start ranks together, but nobody promises it", use)


def torchrun(system: System) -> Finding | None:
    if system.version("torch") is None or system.torch.error:
        return None
    if not system.torch.torchrun:
        return warn(
            "this torch has none", "--launcher torchrun cannot start ranks", "install an official build of torch"
        )
    path = system.which("torchrun")
    own = f"{system.python.rpartition('/')[0]}/torchrun"
    if path is None:
        return ok("python -m torch.distributed.run (torchrun is not on PATH)")
    if system.real_path(path) != system.real_path(own):
        return warn(
            f"{path} is not of this Python",
            f"it starts ranks with another Python than {system.python}",
            f"use {own if system.exists(own) else f'{system.python} -m torch.distributed.run'}",
        )
    return ok(path)


def slurm(system: System) -> Finding:
    environ = system.environ
    if "SLURM_JOB_ID" in environ:
        facts = [f"in job {environ['SLURM_JOB_ID']}"]
        for name, noun in (("SLURM_JOB_NUM_NODES", "node"), ("SLURM_NTASKS", "task"), ("SLURM_CPUS_PER_TASK", "CPU")):
            if environ.get(name, "").isdigit():
                facts.append(plural(int(environ[name]), noun) + (" a task" if noun == "CPU" else ""))
        if environ.get("SLURM_JOB_NODELIST"):
            facts.append(environ["SLURM_JOB_NODELIST"])
        return ok(", ".join(facts))
    programs = [program for program in ("srun", "sbatch") if system.which(program)]
    if programs:
        return note(
            f"{' and '.join(programs)} found; not in a job",
            "on a login node others are at work, and its hardware may not be that of the compute nodes",
            "on a cluster measure inside a job: salloc, or sbatch",
        )
    return note("no srun, no sbatch", "on a cluster they give you nodes of your own")
