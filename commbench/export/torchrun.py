"""`torchrun`: one on each node, which starts the node's ranks."""

from __future__ import annotations

from commbench import transports
from commbench.errors import UsageError
from commbench.export.source import Exported, ExportSource
from commbench.export.start_script import Shell, describe_binding, join_words, nodes, option, per_node, rank, script

_PORT = 29400


def write(source: ExportSource) -> Exported:
    scope = source.scope
    if scope.transport == "mpi":
        raise UsageError(
            f"scope {scope.id} is of transport mpi, whose ranks torchrun cannot start",
            hint="--format mpiexec or srun, or --scope one of another transport",
        )
    # What torch.numa calls `node`: all CPUs of the NUMA node of the GPU whose index is the local rank; no memory.
    numa = scope.binding == "pci" and not scope.binding_memory and transports.entry(scope.transport).gpus
    options = ["--numa-binding=node"] if numa else []
    about = describe_binding(scope, "torchrun", bound=numa) + ("; it needs numactl for that" if numa else "")
    if nodes(scope) == "1":
        place = ["--standalone"]
    else:
        place = [option("--nnodes=", nodes(scope)), "--rdzv-backend=c10d", "--rdzv-id=commbench"]
        place += [Shell(f'--rdzv-endpoint="${{FIRST_NODE:?the name of one of the nodes}}:{_PORT}"')]
        about += "; run it on each node, with the name of one of them in FIRST_NODE"
    command = [*place, option("--nproc-per-node=", per_node(scope)), *options, "--no-python", *rank(source)]
    return script(source, "torchrun", [f"exec torchrun {join_words(command)}"], about)
