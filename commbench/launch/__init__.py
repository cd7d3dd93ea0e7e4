"""Launchers: how the ranks of one launch are started. A new one is one file and one line in `TABLE`.

Nothing here imports torch: the parent that starts a launcher stays small.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from commbench.errors import unknown

if TYPE_CHECKING:
    from commbench.launch.job import Job

# name -> a module with `command(job_path, job)`, the words to run, and `explain(log)`, which rank ended hard by the
# launcher's own account. It may have `environment(job)`, variables that the launcher itself needs; `check()`, which
# raises `EnvironmentProblem` where it cannot work here; `check_emulated(env)`, the same for ranks with `env` on an
# emulated fabric; and `cancel(folder)`, to end ranks that are not below it.
TABLE: dict[str, str] = {
    "local": "commbench.launch.local",
    "mpiexec": "commbench.launch.mpiexec",
    "slurm": "commbench.launch.slurm",
    "torchrun": "commbench.launch.torchrun",
}


class Launcher(NamedTuple):
    """Holds the functions of a launcher's module. Those that it does not define do nothing."""

    command: Callable[[Path, Job], list[str]]
    explain: Callable[[str], str]
    environment: Callable[[Job], dict[str, str]]
    check: Callable[[], None]
    check_emulated: Callable[[Mapping[str, str]], None]
    cancel: Callable[[Path], None]


def get(name: str) -> Launcher:
    if name not in TABLE:
        raise unknown("launcher", name, TABLE)
    module = importlib.import_module(TABLE[name])
    return Launcher(
        command=module.command,
        explain=module.explain,
        environment=getattr(module, "environment", lambda job: {}),
        check=getattr(module, "check", lambda: None),
        check_emulated=getattr(module, "check_emulated", lambda env: None),
        cancel=getattr(module, "cancel", lambda folder: None),
    )
