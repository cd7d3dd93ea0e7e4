"""`commbench exec`: another program, in the environment, on the CPUs and with the exchanges of a profile's scope."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from commbench import variables
from commbench.binding import affinity
from commbench.console import stderr_console
from commbench.errors import EnvironmentProblem, UsageError
from commbench.export import program
from commbench.launch import foreign
from commbench.profile import Profile, Scope
from commbench.profile.file import load
from commbench.profile.scope import only
from commbench.rank_info import RankInfo, detect
from commbench.sweep import foreign_keys
from commbench.variables import refuse_code


def run(
    path: Path,
    command: Sequence[str],
    *,
    wanted: str,
    dry_run: bool,
    words: Sequence[str] = (),
    reductions: bool = False,
    allow_env: Sequence[str] = (),
) -> int:
    """Return from a dry run, and from an emulated cluster. Raises `CommbenchError` where the program cannot start so.

    Below a launcher this process is a rank: it binds itself and becomes the program. Above one it sets variables, and
    each rank binds itself where it imports torch.
    """
    profile = load(path)
    scope = only(profile, wanted, str(path))
    refuse_code(scope.env, f"the profile {path}", allow_env)
    _one_profile(path)
    asked = foreign_keys.read(words)
    info = _rank(scope)
    if asked.cluster and info is not None:
        raise UsageError(
            f"fabric=emulated makes a cluster around a program, and {info.started_by} has started this process in one",
            hint="put commbench exec above the launcher: commbench exec fabric=emulated .. -- torchrun train.py",
        )
    above = scope.binding != "none" and info is None
    settings = program.settings(scope, path, bound=not above, reductions=reductions)
    settings = {**{name: values[0] for name, values in asked.env.items()}, **settings}
    environment = variables.applied(os.environ, settings)
    if info is None or info.local_rank == 0:  # else every rank of a host would say the same
        there = {**os.environ, **(asked.cluster.variables(0) if asked.cluster else {})}
        told = program.notes(scope, there)
        if reductions and not _chooses_sums(profile):
            told = [*told, "--reductions changes nothing: the profile has torch's own call for all sums"]
        for text in told:
            stderr_console().print(f"commbench exec: {text}")
    if dry_run:
        lines = [*program.describe(scope, info, path, environment), shlex.join(command)]
        sys.stdout.buffer.write(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    if above and not program.binds_later(scope, command):
        raise program.no_launcher(scope, path)
    if dry_run:
        return 0
    if asked.cluster is not None:
        return foreign.run(command, env=settings, cluster=asked.cluster).code
    if (placement := None if above else program.place(scope, info, path)) is not None:
        affinity.apply(scope.binding, placement)  # which reads it back
    return program.become(command, environment)


def _chooses_sums(profile: Profile) -> bool:
    """Return whether there is another choice than torch's own call for sums, which `--reductions` allows."""
    return any(one.collective in ("all_reduce", "reduce_scatter") and one.algorithm != "direct"
               for one in profile.choices)  # fmt: skip


def _one_profile(path: Path) -> None:
    """Raise `UsageError` where an exec above this one has set another profile."""
    other = os.environ.get(variables.PROFILE, "")
    if other and os.environ.get(variables.BACKEND) and Path(other) != path.absolute():
        raise UsageError(
            f"two profiles: {variables.PROFILE} is {other}, and --profile is {path}",
            hint=f"a program goes by one: leave one commbench exec out, or unset {variables.PROFILE}",
        )


def _rank(scope: Scope) -> RankInfo | None:
    """Return which rank this process is, None where nothing depends on it."""
    try:
        return detect(os.environ)
    except EnvironmentProblem:
        if scope.binding != "none":
            raise
        return None
