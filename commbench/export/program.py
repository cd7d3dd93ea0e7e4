"""Running a program as a profile's scope asks for: in its environment, and with a place for each rank."""

from __future__ import annotations

import os
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


def environment(scope: Scope, path: Path) -> dict[str, str]:
    """Return this process's variables with those of the scope, and what tells the program of both."""
    return {
        **effective.applied(os.environ, scope.env),
        effective.BINDING: scope.binding,
        effective.PROFILE: str(path.absolute()),
    }


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
        lines.append(f"scope {scope.id} was tuned on an emulated fabric ({scope.fabric}), which exec does not make")
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
        f"binding={scope.binding} has a place for each rank, and this process is no rank: no launcher has started it",
        hint=f"put commbench exec under the launcher: torchrun --nproc-per-node={count} --no-python {inner}, or "
        f"mpiexec -n {count} {inner}, or srun; commbench export --format torchrun, mpiexec or srun writes it all",
    )


def describe(scope: Scope, info: RankInfo | None, path: Path, variables: Mapping[str, str]) -> list[str]:
    """Return the settings and the places of ranks, a line each."""
    unset = [f"unset {name}" for name, value in scope.env.items() if value == UNSET]
    names = [name for name, value in scope.env.items() if value != UNSET] + [effective.BINDING, effective.PROFILE]
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
