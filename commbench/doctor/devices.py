"""GPUs: which there are, and what makes their speed differ from run to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from commbench.doctor.finding import Finding, note, ok, plural, ranges, some, warn
from commbench.doctor.system import System
from commbench.machine.gpus import Gpu, slowdowns
from commbench.units import format_size


def gpus(system: System) -> Finding:
    listed = system.gpus
    if listed.gpus:
        models = Counter((gpu.name, gpu.memory_bytes) for gpu in listed.gpus)
        names = [
            f"{count} x {name}{f' ({format_size(memory)})' if memory else ''}"
            for (name, memory), count in models.items()
        ]
        value = f"{', '.join(names)}, driver {listed.driver}"
        if len(models) > 1:
            return note(value, "a collective runs at the pace of the slowest GPU", "measure each model by itself")
        return ok(value)
    if system.exists("/proc/driver/nvidia/version"):
        if not listed.installed:
            return note(
                "there is an NVIDIA driver, but nothing here can ask it",
                "what disturbs GPUs is unknown without it",
                f"{system.python} -m pip install nvidia-ml-py",
            )
        return warn(f"none to see: {listed.reason}", "there is an NVIDIA driver", "see what nvidia-smi says")
    if system.exists("/dev/kfd"):
        return note("AMD GPUs", "they are not looked at here", "see rocm-smi")
    return note("none", "NCCL and GPU buffers cannot be measured here")


def mig(system: System) -> Finding | None:
    return _odd_ones(
        system,
        lambda gpu: gpu.mig,
        "on",
        "slices of a GPU have no peer access to others, and share memory bandwidth and links",
        "sudo nvidia-smi -mig 0, where the machine is yours",
        good="off",
    )


def others(system: System) -> Finding | None:
    """Look for others on the GPUs: nothing of ours is there now, so whoever is there is somebody else."""
    if not system.gpus.gpus:
        return None
    busy = []
    for index, gpu in enumerate(system.gpus.gpus):
        if gpu.processes:
            busy.append(f"GPU {index}: {_processes(gpu)}")
        elif gpu.busy_percent:
            busy.append(f"GPU {index}: {gpu.busy_percent} % busy")
    if busy:
        return warn(
            some(busy),
            "they share the GPU's memory bandwidth and links, and its clock",
            "see nvidia-smi; end them, or choose other GPUs: CUDA_VISIBLE_DEVICES",
        )
    return ok("nobody is on the GPUs")


def clocks(system: System) -> Finding | None:
    known = [gpu for gpu in system.gpus.gpus if gpu.clock_mhz and gpu.max_clock_mhz]
    if not known:
        return None
    now = sorted({gpu.clock_mhz or 0 for gpu in known})
    most = sorted({gpu.max_clock_mhz or 0 for gpu in known})
    value = f"{_span(now)} MHz now, up to {_span(most)} MHz"
    if now == most:
        return ok(value)
    return note(
        value,
        "a GPU that was idle takes a moment to speed up, and the driver does not tell whether clocks are locked",
        f"for comparisons lock them: sudo nvidia-smi -lgc {most[0]}; undo: -rgc",
    )


def slowed(system: System) -> Finding | None:
    if not any(gpu.slowed_by is not None for gpu in system.gpus.gpus):
        return None
    slow = []
    for index, gpu in enumerate(system.gpus.gpus):
        if reasons := slowdowns(gpu.slowed_by or 0):
            slow.append(f"GPU {index}: {', '.join(reasons)}")
    if slow:
        return warn(
            some(slow),
            "the GPU runs below its clock right now",
            "let it cool, look at fans and power, and measure again: nvidia-smi -q -d PERFORMANCE",
        )
    return ok("nothing slows the GPUs")


def power(system: System) -> Finding | None:
    known = [(gpu.power_limit_w, gpu.default_power_limit_w) for gpu in system.gpus.gpus]
    lowered = [f"GPU {i}: {limit:.0f} of {default:.0f} W" for i, (limit, default) in enumerate(known)
               if limit and default and limit < default]  # fmt: skip
    if lowered:
        return warn(
            some(lowered), "long or dense work will be slowed", "sudo nvidia-smi -pl WATTS, where the machine is yours"
        )
    limits = sorted({round(limit) for limit, default in known if limit and default})
    return ok(f"{_span(limits)} W, not lowered") if limits else None


def persistence(system: System) -> Finding | None:
    return _odd_ones(
        system,
        lambda gpu: None if gpu.persistence is None else not gpu.persistence,
        "off",
        "the driver starts anew for each launch: seconds, and clocks and settings are lost",
        "sudo nvidia-smi -pm 1",
        good="on",
    )


def ecc(system: System) -> Finding | None:
    broken = [f"GPU {index}: {plural(gpu.ecc_errors, 'error')}" for index, gpu in enumerate(system.gpus.gpus)
              if gpu.ecc_errors]  # fmt: skip
    if broken:
        return warn(
            f"uncorrected: {some(broken)}",
            "memory is failing: jobs die or slow down",
            "reset the GPU or have it looked at: nvidia-smi -q -d ECC",
        )
    modes = {gpu.ecc for gpu in system.gpus.gpus if gpu.ecc is not None}
    if not modes:
        return None
    if len(modes) > 1:
        return warn("on for some GPUs, off for others", "their memory differs in speed", "sudo nvidia-smi -e 1; reboot")
    return ok("on, no uncorrected errors" if modes == {True} else "off")


def _odd_ones(
    system: System, odd: Callable[[Gpu], bool | None], value: str, why: str, do: str, *, good: str
) -> Finding | None:
    """Return a warning that names the GPUs for which `odd` is true; None where no GPU says."""
    answers = {index: odd(gpu) for index, gpu in enumerate(system.gpus.gpus)}
    if all(answer is None for answer in answers.values()):
        return None
    odd_gpus = {index for index, answer in answers.items() if answer}
    if not odd_gpus:
        return ok(good)
    which = "all GPUs" if len(odd_gpus) == len(answers) > 1 else f"GPU {ranges(odd_gpus)}"
    return warn(f"{value}: {which}", why, do)


def _span(values: list[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _processes(gpu: Gpu) -> str:
    pids = [str(pid) for pid in gpu.processes]
    return f"process{'es' if len(pids) > 1 else ''} {some(pids)}"
