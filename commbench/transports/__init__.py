"""Transports: the libraries that move bytes. A new one is one file and one entry in `TABLE`.

The entries are plain data, so that planning a sweep imports none of the libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from commbench.errors import EnvironmentProblem, unknown
from commbench.machine import gpus
from commbench.spec import DTYPES

if TYPE_CHECKING:
    from commbench.transports.base import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportEntry:
    module: str
    cls: str
    requires: dict[str, str]  # module that must be importable -> what to install
    launchers: tuple[str, ...]  # the default first
    dtypes: tuple[str, ...] = tuple(DTYPES)
    reduces: tuple[str, ...] = tuple(DTYPES)  # dtypes that it can compute with
    overlaps: bool = True  # whether a matrix product can run beside a call
    modes: tuple[str, ...] = ("isolated", "pipelined")
    buffers: tuple[str, ...] = ("plain",)
    gpus: bool = False  # whether each rank needs one
    one_sided: bool = False  # whether ranks can write into each other's memory
    virtual_hosts: bool = False  # whether it can be made to believe that one host is several
    not_emulated: str = ""  # why it cannot run on an emulated fabric, if so


TABLE: dict[str, TransportEntry] = {
    "gloo": TransportEntry(
        module="commbench.transports.gloo",
        cls="Gloo",
        requires={"torch": "pip install torch"},
        launchers=("local", "torchrun", "slurm"),
    ),
    "mpi": TransportEntry(
        module="commbench.transports.mpi",
        cls="Mpi",
        requires={"mpi4py": "pip install 'commbench[mpi]' (mpi4py and the mpich wheel)"},
        launchers=("mpiexec", "slurm"),
        reduces=("fp32", "int32", "uint8"),  # MPI has no standard type for fp16 and bf16
    ),
    "nccl": TransportEntry(
        module="commbench.transports.nccl",
        cls="Nccl",
        requires={"torch": "pip install torch", "cuda.bindings": "pip install 'commbench[gpu]' (cuda-bindings)"},
        launchers=("local", "torchrun", "slurm"),
        modes=("isolated", "pipelined", "graph"),
        buffers=("plain", "registered", "symmetric"),
        one_sided=True,
        gpus=True,
        virtual_hosts=True,
        not_emulated="its ranks reach each other over NVLink and PCIe, whatever network they are in",
    ),
    "scripted": TransportEntry(
        module="commbench.transports.scripted.transport",
        cls="Scripted",
        requires={},
        launchers=("local",),
        overlaps=False,
        not_emulated="the scripted transport has a virtual network of its own",
    ),
}


def entry(name: str) -> TransportEntry:
    if name not in TABLE:
        raise unknown("transport", name, TABLE)
    return TABLE[name]


def missing(name: str, *, elsewhere: bool = False) -> str:
    """Return one line that says what a transport lacks here, "" if nothing; import nothing.

    `elsewhere`: the GPUs are other hosts'.
    """
    if entry(name).gpus and not elsewhere and not gpus.count(os.environ):
        return f"transport {name} needs GPUs, and none is to be seen here: see nvidia-smi, and CUDA_VISIBLE_DEVICES"
    for module, install in entry(name).requires.items():
        if not _installed(module):
            return f"transport {name} needs {module}, which is not installed: {install}"
    return ""


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def check(name: str, *, elsewhere: bool = False) -> None:
    """Raises `EnvironmentProblem` that says what a transport lacks here, if anything."""
    if reason := missing(name, elsewhere=elsewhere):
        what, _, install = reason.partition(": ")
        raise EnvironmentProblem(what, hint=install)


def load(name: str) -> type[Transport]:
    """The transport's class; imports its library."""
    check(name)
    cls: type[Transport] = getattr(importlib.import_module(entry(name).module), entry(name).cls)
    return cls
