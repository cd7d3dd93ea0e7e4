"""Environment variables and configuration files that change what is measured."""

from __future__ import annotations

from commbench.doctor.finding import Finding, note, ok, plural, some, warn
from commbench.doctor.system import System
from commbench.machine import metadata

# Slurm's are many and say where, not how: `slurm` in launchers shows them.
_WITHOUT = ("SLURM_", "COMMBENCH_")
# Images of containers set these for building software; nothing reads them at run time.
_WITHOUT_EFFECT = {"CUDA_HOME", "CUDA_PATH", "CUDA_VERSION", "NCCL_VERSION", "TORCH_CUDA_ARCH_LIST", "TORCH_HOME"}
_LONGEST = 60
_RANK = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # env:// needs four
_BACKEND, _AUTOLOAD, _ENTRY = "COMMBENCH_BACKEND", "TORCH_DEVICE_BACKEND_AUTOLOAD", "commbench_autoload:"

# name -> (values that do it, in capitals, or none for any value; what it does)
_SPOILERS: dict[str, tuple[tuple[str, ...], str]] = {
    "CUDA_LAUNCH_BLOCKING": (("1",), "every kernel waits for the one before"),
    "TORCH_DISTRIBUTED_DEBUG": (("DETAIL",), "torch checks each collective with another one"),
    "NCCL_DEBUG": (("TRACE",), "NCCL writes a line for every step"),
    "NCCL_P2P_DISABLE": (("1",), "GPUs of a machine go through the host's memory"),
    "NCCL_SHM_DISABLE": (("1",), "ranks of a machine go through the network"),
    "NCCL_IB_DISABLE": (("1",), "NCCL does not use InfiniBand"),
    "LD_PRELOAD": ((), "a library stands between the ranks and their libraries"),
    "PYTHONDEVMODE": ((), "Python checks itself and is slower"),
    "PYTHONMALLOC": (("DEBUG", "MALLOC_DEBUG", "PYMALLOC_DEBUG"), "Python checks its memory and is slower"),
    "UCX_LOG_LEVEL": (("DEBUG", "TRACE", "REQ", "DATA", "ASYNC", "FUNC", "POLL"), "UCX writes while it sends"),
}
_CONFIGURATION = {
    "NCCL": ("/etc/nccl.conf", "~/.nccl.conf"),
    "UCX": ("/etc/ucx/ucx.conf", "~/.config/ucx.conf"),
    "Open MPI": ("/etc/openmpi-mca-params.conf", "/etc/openmpi/openmpi-mca-params.conf", "~/.openmpi/mca-params.conf"),
}


def variables(system: System) -> Finding:
    set_here = _settings(system)
    if not set_here:
        return ok("none is set that changes how libraries communicate")
    return note(
        ", ".join(f"{name}={_short(value)}" for name, value in set_here.items()),
        "they change what is measured: ranks inherit them",
        "unset what you did not mean",
    )


def spoilers(system: System) -> Finding | None:
    spoiling = {
        name: what
        for name, (values, what) in _SPOILERS.items()
        if system.environ.get(name) and (not values or system.environ[name].upper() in values)
    }
    if not spoiling:
        return None
    return warn(
        ", ".join(f"{name}={_short(system.environ[name])}" for name in spoiling),
        "; ".join(spoiling.values()),
        f"unset {' '.join(spoiling)}",
    )


def ranks(system: System) -> Finding | None:
    """Look at what a launcher tells a rank; None where nothing is set. Left over in a shell, it misleads programs."""
    told = {name: system.environ[name] for name in _RANK if system.environ.get(name)}
    if not told or "SLURM_JOB_ID" in system.environ:
        return None
    shown = ", ".join(f"{name}={_short(value)}" for name, value in told.items())
    do = f"unset {' '.join(told)}, or start programs with torchrun"
    missing = [name for name in _RANK[:4] if name not in told]
    if missing:
        return warn(f"{shown}, but {' and '.join(missing)} not set", "env:// needs all four: programs fail or hang", do)
    if not (told["RANK"].isdigit() and told["WORLD_SIZE"].isdigit() and told["MASTER_PORT"].isdigit()):
        return warn(shown, "RANK, WORLD_SIZE and MASTER_PORT are numbers: programs fail", do)
    if int(told["RANK"]) >= int(told["WORLD_SIZE"]):
        return warn(shown, "ranks are 0 to WORLD_SIZE - 1: programs fail or hang", do)
    return note(shown, f"a program that is started from here joins as one of {told['WORLD_SIZE']} ranks, and waits", do)


def backend(system: System) -> Finding:
    """Look whether profiles and recorders reach torch programs that hold nothing of commbench."""
    modes = system.environ.get(_BACKEND, "")
    if not any(value.startswith(_ENTRY) for value in system.entry_points("torch.backends")):
        return note(
            "torch does not load commbench: this installation is older than the entry point for it",
            "commbench exec and record do nothing to a program's exchanges",
            "install commbench again",
        )
    if system.environ.get(_AUTOLOAD) == "0":
        text = f"torch does not load commbench: {_AUTOLOAD}=0"
        return (warn if modes else note)(
            text, f"{modes or 'nothing'} is asked for, and would not happen", f"unset {_AUTOLOAD}"
        )
    if modes:
        return note(
            f"active: {_BACKEND}={_short(modes)}",
            "every torch program that is started from here is wrapped",
            f"unset {_BACKEND} if you did not mean it",
        )
    return ok("not active: torch programs run without commbench, until commbench exec or record starts them")


def configuration(system: System) -> Finding | None:
    paths = {library: list(of) for library, of in _CONFIGURATION.items()}
    if "NCCL_CONF_FILE" in system.environ:
        paths["NCCL"] = ["/etc/nccl.conf", system.environ["NCCL_CONF_FILE"]]  # it takes the place of the one at home
    files = []
    for library, of in paths.items():
        for path in of:
            text = system.text(path.replace("~", system.home, 1))
            lines = [line.strip() for line in (text or "").splitlines()]
            settings = sum(1 for line in lines if line and not line.startswith(("#", "[")))
            if settings:
                files.append(f"{path} ({settings} for {library})")
    if not files:
        return None
    return note(
        some(files),
        "libraries read settings from there as they do from variables, and nothing in a run folder tells",
        "read them; remove what you did not mean",
    )


def threads(system: System) -> Finding:
    value = system.environ.get("OMP_NUM_THREADS", "")
    if not value:
        return ok("OMP_NUM_THREADS is not set: ranks get 1")
    cpus = len(system.allowed_cpus())
    if value.isdigit() and int(value) > 1:
        return note(
            f"OMP_NUM_THREADS={value}",
            f"ranks times threads should not be more than the {plural(cpus, 'CPU')}",
            "unset it: ranks then get 1, as torchrun gives them",
        )
    return ok(f"OMP_NUM_THREADS={value}")


def _settings(system: System) -> dict[str, str]:
    return {
        name: value
        for name, value in sorted(system.environ.items())
        if name.startswith(metadata.ENV_PREFIXES)
        and not name.startswith(_WITHOUT)
        and name not in _WITHOUT_EFFECT
        and not metadata.SECRET.search(name)
        and value
    }


def _short(value: str) -> str:
    value = " ".join(value.split())
    return value if len(value) <= _LONGEST else value[:_LONGEST] + "..."
