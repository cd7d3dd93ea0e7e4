"""Running a program as a profile's scope asks for: in its environment, and with a place for each rank."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from commbench import variables as effective
from commbench.binding import affinity
from commbench.binding.policies import Placement
from commbench.errors import EnvironmentProblem, UsageError
from commbench.launch import foreign
from commbench.profile import Scope
from commbench.rank_info import RankInfo
from commbench.records import Setup, network_note
from commbench.variables import UNSET

_TORCH = ("gloo", "nccl")  # transports under torch.distributed
_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
_PYTHON = re.compile(r"python[\d.]*")
# Launchers of torch programs: themselves, and what their scripts run.
_LAUNCHERS = ("torchrun", "accelerate", "deepspeed")
_LAUNCHING_MODULES = (
    "torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "deepspeed.launcher.runner",
    "deepspeed.launcher.launch",
)  # fmt: skip


def settings(scope: Scope, path: Path, *, bound: bool, reductions: bool) -> dict[str, str]:
    """Return the variables of a program (`unset`: without it): those of the scope, and what tells the program of both.

    bound: this process is the rank that the scope binds; else each rank does it, where it imports torch.
    """
    later = scope.binding != "none" and not bound
    return {
        **scope.env,
        effective.BINDING: UNSET if later else scope.binding,
        effective.SCOPE: scope.id if later else UNSET,
        effective.PROFILE: str(path.absolute()),
        effective.BACKEND: _backend(scope),
        effective.REDUCTIONS: "1" if reductions else UNSET,
    }


def binds_later(scope: Scope, command: Sequence[str]) -> bool:
    """Return whether ranks that `command` starts can bind themselves as the scope asks, where they import torch."""
    return scope.transport in _TORCH and starts_ranks(command)


def _backend(scope: Scope) -> str:
    """Return what torch's groups are wrapped for: the profile, and what they were before."""
    before = [mode for mode in os.environ.get(effective.BACKEND, "").split(",") if mode and mode != "profile"]
    return ",".join([*before, *(["profile"] if scope.transport in _TORCH else [])]) or UNSET


def starts_ranks(command: Sequence[str]) -> bool:
    """Return whether a command is a launcher of torch programs, each rank of which imports torch."""
    words = list(command)
    if _PYTHON.fullmatch(Path(words[0]).name):
        del words[0]
        while words and words[0].startswith("-") and words[0] != "-m":
            del words[0]
        if words[:1] == ["-m"]:
            return words[1:2] != [] and words[1] in _LAUNCHING_MODULES
    return bool(words) and Path(words[0]).name in _LAUNCHERS


def notes(scope: Scope, environ: Mapping[str, str]) -> list[str]:
    """Return what the user should know: how the scope differs from what they have set up."""
    lost = [
        f"{name} {'unset' if value == UNSET else f'= {value!r}'} (was {environ[name]!r})"
        for name, value in scope.env.items()
        if name in environ and environ[name] != value
    ]
    lines = [f"the profile's settings replace yours: {', '.join(lost)}"] if lost else []
    if note := network_note(scope.fabric):
        lines.append(f"scope {scope.id} was tuned so: {note}")
    elif scope.fabric and environ.get(effective.FABRIC) != scope.fabric:
        lines.append(f"scope {scope.id} was tuned on an emulated fabric ({scope.fabric}), which this is not")
    if environ.get(_AUTOLOAD) == "0" and scope.transport in _TORCH:
        lines.append(f"{_AUTOLOAD}=0: torch will not load commbench, and makes all exchanges itself")
    return lines


def _setup(scope: Scope, local_size: int) -> Setup:
    return Setup(
        transport=scope.transport,
        nodes=scope.nodes or 1,
        ranks_per_node=scope.ranks_per_node or local_size,
        env=scope.env,
        binding=scope.binding,
        cpu_masks=scope.cpu_masks,
        binding_memory=scope.binding_memory,
    )


def place(scope: Scope, info: RankInfo | None, path: Path) -> Placement | None:
    """Return the place of this rank, None where it stays as it was started. Raises `EnvironmentProblem`."""
    if scope.binding == "none":
        return None
    if info is None:
        raise no_launcher(scope, path)
    per_node = scope.ranks_per_node
    # One host may stand for all nodes.
    if per_node and info.local_size not in (per_node, per_node * (scope.nodes or 1)):
        raise EnvironmentProblem(
            f"binding={scope.binding} of scope {scope.id} is for {per_node} ranks on each host, and {info.started_by} "
            f"has started {info.local_size} on this one",
            hint=f"start {per_node} ranks on each host, each of them through commbench exec",
        )
    return _places(scope, info.local_size)[info.local_rank]


def _places(scope: Scope, local_size: int) -> list[Placement]:
    """Return the places of all ranks of this host."""
    from commbench.launch import placement as placing

    # Not the affinity that it was started with: a launcher that has pinned it shall be noticed, not obeyed.
    return placing.here(_setup(scope, local_size), local_size, affinity.limit())


def no_launcher(scope: Scope, path: Path) -> EnvironmentProblem:
    count = scope.ranks_per_node or "N"
    inner = f"commbench exec --profile {shlex.quote(str(path))} -- PROGRAM"
    return EnvironmentProblem(
        f"binding={scope.binding} has a place for each rank, and this process is not a rank: "
        "no launcher has started it",
        hint="put commbench exec above torchrun, accelerate or deepspeed, whose ranks bind themselves, or under the "
        f"launcher: torchrun --nproc-per-node={count} --no-python {inner}, or "
        f"mpiexec -n {count} {inner}, or srun; commbench export --format torchrun, mpiexec or srun writes it all",
    )


def describe(scope: Scope, info: RankInfo | None, path: Path, variables: Mapping[str, str]) -> list[str]:
    """Return the settings and the places of ranks, a line each."""
    unset = [f"unset {name}" for name, value in scope.env.items() if value == UNSET]
    ours = ("BINDING", "SCOPE", "PROFILE", "BACKEND", "REDUCTIONS", "ALGORITHMS")
    named = [getattr(effective, name) for name in ours]
    names = [name for name, value in scope.env.items() if value != UNSET] + [
        name for name in named if name in variables
    ]
    lines = [*unset, *(f"{name}={shlex.quote(variables[name])}" for name in names)]
    if scope.binding == "none":
        lines.append("binding=none: as it is started")
    elif info is None and scope.ranks_per_node:
        each = enumerate(_places(scope, scope.ranks_per_node))
        lines += [f"binding={scope.binding}, local rank {rank}: {its}" for rank, its in each]
    elif info is not None:
        lines.append(f"binding={scope.binding}, local rank {info.local_rank}: {place(scope, info, path)}")
    return lines


def become(command: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Replace this process by a program. Raises `UsageError` where it cannot be started."""
    for name in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored is inherited
        signal.signal(name, signal.SIG_DFL)
    if not command[0]:
        raise UsageError("cannot start '': an empty word names no program", hint="give a program and its arguments")
    try:
        os.execvpe(command[0], list(command), dict(variables))
    except OSError as error:
        raise foreign.cannot_start(command[0], error, variables) from error
