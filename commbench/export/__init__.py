"""Exports: a profile in the words of other programs. A new format is one file and one line in `TABLE`."""

from __future__ import annotations

from collections.abc import Callable

from commbench.errors import unknown
from commbench.export import environment, json_file, mpiexec, nccl_conf, nccl_tuner, srun, torchrun
from commbench.export.source import Exported, ExportSource

TABLE: dict[str, Callable[[ExportSource], Exported]] = {
    "json": json_file.write,
    "env": environment.write,
    "nccl-conf": nccl_conf.write,
    "nccl-tuner": nccl_tuner.write,
    "mpiexec": mpiexec.write,
    "srun": srun.write,
    "torchrun": torchrun.write,
}


def export(name: str, source: ExportSource) -> Exported:
    """Write a profile in a format. Raises `CommbenchError` where the profile cannot be said in it.

    That it loads code is refused, but for what the source allows.
    """
    if name not in TABLE:
        raise unknown("format", name, TABLE)
    source.refuse_code()
    return TABLE[name](source)
