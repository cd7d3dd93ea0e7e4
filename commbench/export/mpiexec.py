"""`mpiexec`: of Open MPI, MPICH and Intel MPI, each with its own options; the script asks which one it has."""

from __future__ import annotations

from commbench.binding import policies
from commbench.export.source import Exported, ExportSource
from commbench.export.start_script import Shell, describe_binding, join_words, nodes, per_node, rank, ranks, script
from commbench.profile import Scope


def write(source: ExportSource) -> Exported:
    scope = source.scope
    masks = _user(scope)
    size = ["-n", ranks(scope)]
    place = [] if nodes(scope) == "1" else ["-ppn", per_node(scope)]
    # Open MPI: node by node, in the order of ranks; slots are not counted where there is one node.
    spread = ["--map-by", "slot"] if nodes(scope) == "1" else ["--map-by", _ppr(scope)]
    open_mpi = ["--bind-to", "none", *spread, *size, *rank(source)]
    intel = ["-genv", "I_MPI_PIN", "0", *place, *size, *rank(source)]
    mpich = ["-bind-to", masks or "none", *place, *size, *rank(source)]
    commands = [
        'case "$(mpiexec --version 2>&1)" in',
        '*"Open MPI"* | *OpenRTE* | *PRRTE*)',
        f"    exec mpiexec {join_words(open_mpi)} ;;",
        '*"Intel(R) MPI"*)',
        f"    exec mpiexec {join_words(intel)} ;;",
        "*) # MPICH, and what is derived from it",
        f"    exec mpiexec {join_words(mpich)} ;;",
        "esac",
    ]
    about = describe_binding(scope, "mpiexec")
    if masks:
        about = f"{describe_binding(scope, 'mpiexec of MPICH', bound=True)}; the others have no words for it"
    return script(source, "mpiexec", commands, about)


def _ppr(scope: Scope) -> str:
    count = per_node(scope)
    return Shell(f"ppr:{count}:node") if isinstance(count, Shell) else f"ppr:{count}:node"


def _user(scope: Scope) -> str:
    """Return masks in Hydra's words: numbers of CPUs as the kernel counts them. It binds no memory."""
    if scope.binding != "explicit" or scope.binding_memory:
        return ""
    return "user:" + ",".join("+".join(map(str, mask)) for mask in policies.parse_masks(scope.cpu_masks))
