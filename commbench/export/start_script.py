"""What the exports for launchers share: a POSIX script that starts a program's ranks as a scope wants them.

Ranks that are bound are started through `commbench exec`, which places each one on the machine that it is on, and reads
it back. Where the launcher has options for the same binding it gets them too. That alone would not do: srun
without task/affinity says that it cannot bind, and goes on; and what a rank has in COMMBENCH_BINDING shall be so. Other
ranks are started through `env`, and need no commbench.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from commbench import variables
from commbench.algorithms import outside
from commbench.export.source import Exported, ExportSource, comment, lines, settings, without
from commbench.profile import Scope
from commbench.records import network_note

PROGRAM = '"$@"'


class Shell(str):
    """Words for a shell that are not to be quote: of this package's own making, never of a profile's."""


def join_words(words: Sequence[str]) -> str:
    return " ".join(word if isinstance(word, Shell) else shlex.quote(word) for word in words)


def nodes(scope: Scope) -> str:
    return str(scope.nodes) if scope.nodes else Shell('"$NODES"')


def per_node(scope: Scope) -> str:
    return str(scope.ranks_per_node) if scope.ranks_per_node else Shell('"$RANKS_PER_NODE"')


def ranks(scope: Scope) -> str:
    if scope.nodes and scope.ranks_per_node:
        return str(scope.nodes * scope.ranks_per_node)
    return Shell(f"$(({scope.nodes or 'NODES'} * {scope.ranks_per_node or 'RANKS_PER_NODE'}))")


def option(name: str, value: str) -> str:
    """Return `NAME=VALUE` as one word."""
    return Shell(name + value) if isinstance(value, Shell) else name + value


def rank(source: ExportSource) -> list[str]:
    """Return what a launcher starts."""
    scope, path = source.scope, str(source.path.absolute())
    if scope.binding != "none":
        words = [source.python, "-m", "commbench", "exec", "--profile", path, "--scope", scope.id]
        allowed = [word for name in source.allowed for word in ("--allow-env", name)]
        trusted = [word for one in source.files() for word in ("--algorithms", one)]
        return [*words, *allowed, *trusted, "--", Shell(PROGRAM)]
    unset = [word for name in without(scope) for word in ("-u", name)]
    values = {**settings(scope), variables.BINDING: scope.binding, variables.PROFILE: path}
    if trusted := source.files():
        values[variables.ALGORITHMS] = outside.BETWEEN.join(trusted)
    return ["env", *unset, *(f"{name}={value}" for name, value in values.items()), Shell(PROGRAM)]


def script(source: ExportSource, launcher: str, commands: Sequence[str], about: str) -> Exported:
    scope = source.scope
    head = source.heading(f"Starts the ranks of a program with {launcher}: sh THIS-FILE PROGRAM ARGUMENTS")
    sizes = (("NODES", scope.nodes, "nodes"), ("RANKS_PER_NODE", scope.ranks_per_node, "ranks on each node"))
    asked = [f': "${{{name}:?how many {what}? The profile does not say}}"' for name, value, what in sizes if not value]
    body = [
        "set -eu",
        f'[ $# -gt 0 ] || {{ echo "usage: sh $0 PROGRAM ARGUMENTS, which {launcher} starts" >&2; exit 2; }}',
    ]
    emulated = f"the scope was tuned on an emulated fabric ({scope.fabric}), which {launcher} does not make"
    notes = [network_note(scope.fabric) or emulated]
    text = "#!/bin/sh\n" + lines(head, comment(about), body, asked, list(commands))
    return Exported(text, notes if scope.fabric else [])


def describe_binding(scope: Scope, launcher: str, *, bound: bool = False) -> str:
    """Return in words who binds ranks; `bound`: the launcher does as well."""
    if scope.binding == "none":
        return f"no binding: ranks keep the CPUs that {launcher} gives them"
    memory = " with memory" if scope.binding_memory else ""
    if bound:
        return f"binding={scope.binding}{memory}: {launcher} is asked for it, and commbench exec sees to it"
    return f"binding={scope.binding}{memory}: {launcher} has no words for it, so commbench exec does it"
