"""The machine as checks see it: the one place that reads files, the environment and other programs.

Checks take a `System`, so a test can hand them a recorded one.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from commbench import transports
from commbench.layout import LinkClass
from commbench.links import LinkRate
from commbench.machine import gpus, link_rates
from commbench.machine.gpus import Gpus

if TYPE_CHECKING:
    from commbench.launch.mpi_library import MpiLibrary

_PROGRAM_TIMEOUT_S = 5.0
_KERNEL_LINE = 8192  # bytes, at most
_TORCH_TIMEOUT_S = 60.0  # a cold import from a busy network file system takes that long
_TORCH_PROBE = """
import importlib.util, json, torch
print(json.dumps({
    "version": torch.__version__,
    "accelerator": "ROCm " + torch.version.hip if torch.version.hip
                   else "CUDA " + torch.version.cuda if torch.version.cuda else "",
    "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "",
    "torchrun": importlib.util.find_spec("torch.distributed.run") is not None,
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """What torch says of itself once it is loaded; with `error`, that it cannot be."""

    version: str = ""
    accelerator: str = ""  # "CUDA 12.8", "ROCm 6.4", or "" for a build that is for CPUs only
    gpus: int = 0
    gloo: bool = False
    nccl: str = ""
    torchrun: bool = False
    seconds: float = 0.0
    error: str = ""


class System:
    """This machine. Methods raise OSError where there is nothing to read, unless they say otherwise."""

    def __init__(self) -> None:
        self.environ: Mapping[str, str] = os.environ
        self.python = sys.executable
        self.python_version = platform.python_version()
        self.host = platform.node()
        self.pid = os.getpid()

    # These three can be missing too: a folder that was removed, no home, no place for temporary files.
    @functools.cached_property
    def folder(self) -> str:
        return str(Path.cwd())

    @functools.cached_property
    def home(self) -> str:
        return str(Path.home())

    @functools.cached_property
    def temporary_folder(self) -> str:
        return tempfile.gettempdir()

    def read(self, path: str) -> str:
        return Path(path).read_text(errors="replace").strip()

    def text(self, path: str) -> str | None:
        """Return a file's text, None where it cannot be read: for files whose absence says something."""
        try:
            return self.read(path)
        except OSError:
            return None

    def addresses(self) -> dict[str, list[str]]:
        """Return the addresses of each network interface, IPv4 and IPv6, without zones."""
        families = (socket.AF_INET, socket.AF_INET6)
        return {
            name: [one.address.partition("%")[0] for one in found if one.family in families]
            for name, found in psutil.net_if_addrs().items()
        }

    def names(self, path: str) -> list[str]:
        """Return what is in a folder, sorted; nothing if it is not there."""
        try:
            return sorted(entry.name for entry in Path(path).iterdir())
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def real_path(self, path: str) -> str:
        return os.path.realpath(path)

    def space(self, path: str) -> tuple[int, int]:
        """Return bytes in all and bytes free of the file system that holds `path`."""
        usage = shutil.disk_usage(path)
        return usage.total, usage.free

    def try_lock(self, folder: str) -> None:
        """Write and lock a file without a name there; raises what the file system answers."""
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def kernel_log(self) -> list[str]:
        """Return the lines that the kernel keeps, oldest first; PermissionError where this user may not read them."""
        lines = []
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while True:
                try:
                    lines.append(os.read(log, _KERNEL_LINE).decode(errors="replace"))
                except BrokenPipeError:  # lines were overwritten meanwhile
                    continue
                except BlockingIOError:  # that was the last one
                    return lines
        finally:
            os.close(log)

    def allowed_cpus(self) -> set[int]:
        return os.sched_getaffinity(0)

    def limit(self, what: int) -> tuple[int | None, int | None]:
        """Return a resource limit, soft and hard; None is unlimited."""
        soft, hard = resource.getrlimit(what)
        return (
            None if soft == resource.RLIM_INFINITY else soft,
            None if hard == resource.RLIM_INFINITY else hard,
        )

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def which(self, program: str) -> str | None:
        return shutil.which(program)

    def run(self, *words: str) -> str:
        """Return a program's stdout and stderr, whatever its exit code; OSError also if it says nothing in time."""
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_PROGRAM_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{words[0]} gave no answer in {_PROGRAM_TIMEOUT_S:.0f} s") from error
        return done.stdout.strip()

    def version(self, package: str) -> str | None:
        """Return the version of an installed package, or None."""
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def entry_points(self, group: str) -> list[str]:
        """Return what is loaded by others for this group, as installed packages say."""
        return [entry.value for entry in importlib.metadata.entry_points(group=group)]

    def requirements(self) -> list[str]:
        """Return what commbench's own metadata asks for, extras included. Raises where commbench is not installed."""
        return importlib.metadata.requires("commbench") or []

    def transports(self) -> dict[str, str]:
        """Return for each transport what it lacks here, "" if nothing."""
        return {name: transports.missing(name) for name in transports.TABLE}

    @functools.cached_property
    def torch(self) -> Torch:
        """Load torch once, in a process of its own: it takes seconds and may crash."""
        started = time.monotonic()
        try:
            done = subprocess.run(
                [self.python, "-P", "-c", _TORCH_PROBE],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TORCH_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Torch(error=f"the import took longer than {_TORCH_TIMEOUT_S:.0f} s")
        seconds = time.monotonic() - started
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return Torch(error=last)
        return Torch(**json.loads(done.stdout.splitlines()[-1]), seconds=seconds)

    @functools.cached_property
    def gpus(self) -> Gpus:
        return gpus.read()

    def link_rates(self, transport: str) -> dict[LinkClass, LinkRate]:
        """Return what this machine says its links do for a transport, with a rank for each GPU. Never raises."""
        return link_rates.here(transport, max(2, len(self.gpus.gpus)), self.environ)

    @functools.cached_property
    def mpi_library(self) -> MpiLibrary:
        """Return what mpi4py will load. Raises `EnvironmentProblem` if there is none, or no mpiexec that fits it."""
        from commbench.launch import mpi_library

        return mpi_library.find()

    def mpi_family(self, text: str) -> str | None:
        """Return the family of an mpiexec by what it says to --version."""
        from commbench.launch import mpi_library

        return mpi_library.family(text)
