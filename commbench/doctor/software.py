"""Python, commbench, torch and what the transports need."""

from __future__ import annotations

import re

import commbench
from commbench.doctor.finding import Finding, fail, note, ok, plural, warn
from commbench.doctor.system import System

_SLOW_IMPORT_S = 10.0


def python(system: System) -> Finding:
    return ok(f"{system.python_version}, {system.python}")


def commbench_version(system: System) -> Finding:
    return ok(f"{commbench.__version__}, {commbench.__path__[0]}")


def dependencies(system: System) -> Finding:
    needed = _packages(system)[""]
    lacking = [package for package in needed if system.version(package) is None]
    if lacking:
        return fail(
            f"not installed: {', '.join(lacking)}",
            "commbench does not work without them",
            f"{_pip(system)} install {' '.join(lacking)}",
        )
    return ok(f"all {len(needed)} packages are installed")


def extras(system: System) -> Finding | None:
    """Look for the extras; `dev` is for those who change commbench: its absence is not worth a line."""
    groups = {extra: names for extra, names in _packages(system).items() if extra not in ("", "dev")}
    if not groups:
        return None
    lacking = {extra: [name for name in names if system.version(name) is None] for extra, names in groups.items()}
    absent = [f"{extra} (lacks {', '.join(names)})" for extra, names in lacking.items() if names]
    there = [extra for extra, names in lacking.items() if not names]
    if absent:
        names = ",".join(extra for extra, packages in lacking.items() if packages)
        return note(
            "; ".join(filter(None, [", ".join(there), "not installed: " + ", ".join(absent)])),
            "they are optional",
            f"for all of them: {_pip(system)} install 'commbench[{names}]'",
        )
    return ok(", ".join(there))


def torch(system: System) -> Finding:
    version = system.version("torch")
    if version is None:
        return fail("not installed", "gloo and NCCL are used through it", f"{_pip(system)} install torch")
    loaded = system.torch
    if loaded.error:
        return fail(
            f"{version} does not load: {loaded.error}",
            "every rank loads it",
            f"see the whole message: {system.python} -c 'import torch'",
        )
    parts = [loaded.version, loaded.accelerator or "for CPUs only"]
    parts += ["gloo"] * loaded.gloo + [f"NCCL {loaded.nccl}"] * bool(loaded.nccl)
    parts += [f"uses {plural(loaded.gpus, 'GPU')}"] * bool(loaded.gpus) + [f"loaded in {loaded.seconds:.1f} s"]
    value = ", ".join(parts)
    if system.gpus.gpus and not loaded.gpus:
        if loaded.accelerator:
            return warn(
                f"{value}; cannot use the GPUs",
                "the driver may be too old for this build, or CUDA_VISIBLE_DEVICES hides the GPUs",
                f"see the reason: {system.python} -c 'import torch; torch.cuda.init()'",
            )
        return warn(
            f"{value}; there are GPUs",
            "NCCL and GPU buffers need a CUDA build of torch",
            f"{_pip(system)} install torch, from the index that pytorch.org names for your driver",
        )
    if not loaded.gloo:
        return warn(f"{value}; without gloo", "the transport gloo cannot run", "install an official build of torch")
    if loaded.seconds > _SLOW_IMPORT_S:
        return note(
            value,
            "each launch is a fresh process that loads torch; from a network file system that is slow",
            "install Python and torch on a local disk",
        )
    return ok(value)


def transports(system: System) -> Finding:
    every = system.transports()
    ready = [name for name, reason in every.items() if not reason]
    reasons = [reason for reason in every.values() if reason]
    if reasons:
        # "... is not installed: pip install ..."
        why, do = zip(*(reason.split(": ", 1) for reason in reasons), strict=True)
        return note(f"ready: {', '.join(ready)}", "; ".join(why), "if you want to measure it: " + "; ".join(do))
    return ok(f"ready: {', '.join(ready)}")


def _packages(system: System) -> dict[str, list[str]]:
    """Return the packages that each extra asks for ("" is none)."""
    packages: dict[str, list[str]] = {"": []}
    for line in system.requirements():
        package = re.match(r"[\w.-]+", line)
        extra = re.search(r"""extra == ["']([\w.-]+)["']""", line)
        if package:
            packages.setdefault(extra[1] if extra else "", []).append(package[0])
    return packages


def _pip(system: System) -> str:
    # Of this Python: the pip on PATH may be another one's.
    return f"{system.python} -m pip"
