"""What `commbench exec` above a launcher has left to each rank: the settings and the binding of the profile's scope."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from commbench import variables
from commbench.binding import affinity
from commbench.errors import EnvironmentProblem
from commbench.export import program
from commbench.profile.file import load
from commbench.profile.scope import only
from commbench.rank_info import RankInfo, detect

_DEVICES = "/dev/nvidia"  # what CUDA opens when it starts


def rank() -> RankInfo | None:
    """Return which rank this process is; None for none, and for launchers, whose ranks are to come."""
    return None if program.starts_ranks(sys.orig_argv) else detect(os.environ)


def settle() -> None:
    """Bind this rank and set its variables, if that is left to do. Raises `CommbenchError` where it cannot be done."""
    wanted, info = os.environ.get(variables.SCOPE, ""), rank()
    if not wanted or variables.BINDING in os.environ or info is None:  # a child of a bound rank is bound
        return
    path = Path(os.environ[variables.PROFILE])
    scope = only(load(path), wanted, str(path))
    variables.refuse_code(scope.env, f"the profile {path}", ())  # what exec was allowed to set is set
    if late := _started():
        raise EnvironmentProblem(
            f"binding={scope.binding} is not applied, as {late} before torch was imported: what it has placed stays",
            hint="import torch first, or put commbench exec under the launcher",
        )
    placement = program.place(scope, info, path)
    for name, value in scope.env.items():
        if variables.differs(name, value, os.environ):
            os.environ.pop(name, None)
            os.environ.update({} if value == variables.UNSET else {name: value})
    if placement is not None:
        affinity.apply(scope.binding, placement)  # which reads it back
    os.environ[variables.BINDING] = scope.binding


def unsettled() -> str:
    """Return in words what has not been done, in a process that makes groups; "" for nothing."""
    if os.environ.get(variables.SCOPE) and variables.BINDING not in os.environ and rank() is None:
        return (
            "the profile's binding is not applied, as no launcher has said which rank this process is: start ranks "
            "with torchrun, not by torch.multiprocessing.spawn"
        )
    return ""


def _started() -> str:
    """Return in words what has started by now and chose its place."""
    if "mpi4py.MPI" in sys.modules:
        return "MPI has started"
    return "CUDA has started" if any(str(path).startswith(_DEVICES) for path in _opened()) else ""


def _opened() -> Iterator[Path]:
    """Yield what this process has open."""
    with contextlib.suppress(OSError):  # not on Linux
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the folder itself, which is closed by now
                yield entry.readlink()
