"""`srun`: a step of a Slurm allocation."""

from __future__ import annotations

from commbench.binding import policies
from commbench.export.source import Exported, ExportSource
from commbench.export.start_script import describe_binding, join_words, nodes, option, per_node, rank, ranks, script
from commbench.profile import Scope

# As commbench.launch.slurm starts its own: block, so that ranks are numbered node by node.
_STEP = ("--distribution=block", "--kill-on-bad-exit=1", "--export=ALL")


def write(source: ExportSource) -> Exported:
    scope = source.scope
    bind = _masks(scope)
    size = [
        option("--nodes=", nodes(scope)),
        option("--ntasks=", ranks(scope)),
        option("--ntasks-per-node=", per_node(scope)),
    ]
    command = join_words(["srun", *size, *_STEP, *(bind or ["--cpu-bind=none"]), *rank(source)])
    return script(source, "srun", [f"exec {command}"], describe_binding(scope, "srun", bound=bool(bind)))


def _masks(scope: Scope) -> list[str]:
    """Return options that srun obeys where Slurm has task/affinity, and fails on without the whole node."""
    if scope.binding != "explicit":
        return []
    masks = (sum(1 << cpu for cpu in mask) for mask in policies.parse_masks(scope.cpu_masks))
    memory = ["--mem-bind=local"] if scope.binding_memory else []
    return ["--cpu-bind=mask_cpu:" + ",".join(map(hex, masks)), *memory]
