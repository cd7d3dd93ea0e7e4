"""What this machine has and what would spoil a measurement: a table of checks, each a small function of a `System`.

A new check is a function and a line in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from commbench.doctor import cpus, devices, files, gpu_health, launchers, memory, network, software, variables
from commbench.doctor.finding import Check, CheckStatus, Finding, note
from commbench.doctor.load import load
from commbench.doctor.system import System

CHECKS: tuple[Check, ...] = (
    Check("software", "python", software.python),
    Check("software", "commbench", software.commbench_version),
    Check("software", "dependencies", software.dependencies),
    Check("software", "extras", software.extras),
    Check("software", "torch", software.torch),
    Check("software", "transports", software.transports),
    Check("MPI", "mpi4py", launchers.mpi4py),
    Check("MPI", "library", launchers.mpi_library),
    Check("MPI", "mpiexec", launchers.mpiexec),
    Check("launchers", "torchrun", launchers.torchrun),
    Check("launchers", "Slurm", launchers.slurm),
    Check("GPUs", "GPUs", devices.gpus),
    Check("GPUs", "others", devices.others),
    Check("GPUs", "slowed", devices.slowed),
    Check("GPUs", "clocks", devices.clocks),
    Check("GPUs", "power limit", devices.power),
    Check("GPUs", "MIG", devices.mig),
    Check("GPUs", "persistence", devices.persistence),
    Check("GPUs", "ECC", devices.ecc),
    Check("GPUs", "remapped rows", gpu_health.remapped_rows),
    Check("GPUs", "Xid errors", gpu_health.xids),
    Check("GPUs", "NVLinks", gpu_health.nvlinks),
    Check("GPUs", "PCIe", gpu_health.pcie),
    Check("GPUs", "GPUDirect", network.gpu_direct),
    Check("network", "interfaces", network.interfaces),
    Check("network", "host name", network.host_name),
    Check("network", "socket names", network.socket_interfaces),
    Check("network", "InfiniBand", network.infiniband),
    Check("network", "link rates", network.link_rates),
    Check("CPUs", "machine", cpus.machine),
    Check("CPUs", "CPUs", cpus.allowed),
    Check("CPUs", "quota", cpus.quota),
    Check("CPUs", "load", load),
    Check("CPUs", "steal", cpus.steal),
    Check("CPUs", "governor", cpus.governor),
    Check("CPUs", "turbo", cpus.turbo),
    Check("CPUs", "SMT", cpus.smt),
    Check("CPUs", "NUMA", cpus.numa),
    Check("CPUs", "NUMA balancing", cpus.numa_balancing),
    Check("CPUs", "clock source", cpus.clock_source),
    Check("memory", "memory", memory.memory),
    Check("memory", "/dev/shm", memory.shared_memory),
    Check("memory", "swap", memory.swap),
    Check("memory", "huge pages", memory.huge_pages),
    Check("memory", "locked memory", memory.locked_memory),
    Check("memory", "open files", memory.open_files),
    Check("files", "results", files.results),
    Check("files", "temporary", files.temporary),
    Check("environment", "variables", variables.variables),
    Check("environment", "spoilers", variables.spoilers),
    Check("environment", "ranks", variables.ranks),
    Check("environment", "backend", variables.backend),
    Check("environment", "settings files", variables.configuration),
    Check("environment", "threads", variables.threads),
)


def examine(
    system: System, sections: Collection[str] = (), *, without: Collection[str] = ()
) -> Iterator[tuple[Check, Finding]]:
    """Yield each check with its finding; those that do not apply here are left out. Never raises.

    sections: those wanted, all where there is none. without: names of checks.
    """
    for check in CHECKS:
        if (sections and check.section not in sections) or check.name in without:
            continue
        finding = _guarded(check, system)
        if finding is not None:
            yield check, finding


def _guarded(check: Check, system: System) -> Finding | None:
    try:
        return check.look(system)
    except Exception as error:  # a doctor that dies of a strange machine is of no use there
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        else:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return note(f"could not be read: {reason}")


__all__ = ["CHECKS", "Check", "CheckStatus", "Finding", "examine"]
