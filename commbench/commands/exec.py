"""`commbench exec`: becomes another program, in the environment and on the CPUs that a profile's scope asks for."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from commbench.binding import affinity
from commbench.console import stderr_console
from commbench.errors import EnvironmentProblem
from commbench.export import program
from commbench.profile import Scope
from commbench.profile.file import load
from commbench.profile.scope import only
from commbench.rank_info import RankInfo, detect
from commbench.variables import refuse_code


def run(path: Path, command: Sequence[str], *, wanted: str, dry_run: bool, allow_env: Sequence[str] = ()) -> int:
    """Return from a dry run only. Raises `CommbenchError` where the program cannot be started so."""
    scope = only(load(path), wanted, str(path))
    refuse_code(scope.env, f"the profile {path}", allow_env)
    info = _rank(scope)
    variables = program.environment(scope, path)
    if info is None or info.local_rank == 0:  # else every rank of a host would say the same
        for text in program.notes(scope, os.environ):
            stderr_console().print(f"commbench exec: {text}")
    if not dry_run:
        if (placement := program.place(scope, info, path)) is not None:
            affinity.apply(scope.binding, placement)  # which reads it back
        program.become(command, variables)
    lines = [*program.describe(scope, info, path, variables), shlex.join(command)]
    sys.stdout.buffer.write(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()
    if scope.binding != "none" and info is None:
        raise program.no_launcher(scope, path)
    return 0


def _rank(scope: Scope) -> RankInfo | None:
    """Return which rank this process is, None where nothing depends on it."""
    try:
        return detect(os.environ)
    except EnvironmentProblem:
        if scope.binding != "none":
            raise
        return None
