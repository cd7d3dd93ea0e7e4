"""Shell completion as click has it. What may be typed is looked up when a shell asks, and only then."""

from __future__ import annotations

import os
from collections.abc import Callable

import click

VARIABLE = "_COMMBENCH_COMPLETE"
_Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def words_of(command: str) -> _Complete:
    """Return what completes [RECIPE] [KEY=VALUE ...] of a command."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from commbench.find import completion

        return completion.complete(command, ctx.params.get(param.name or "") or (), incomplete)

    return complete


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from commbench.find import completion

    return completion.recipe_names(incomplete)


def keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from commbench.find import completion

    return completion.key_names(incomplete)


def meanings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from commbench.find import meanings as found

    return [name for name in found.names() if name.startswith(incomplete) and " " not in name]


def prepare() -> None:
    """Let bash put no space after `key=`, where this process is asked for completion at all."""
    if VARIABLE not in os.environ:
        return
    from click import shell_completion

    class Bash(shell_completion.BashComplete):
        source_template = shell_completion.BashComplete.source_template.replace(
            "    return 0", "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n\n    return 0"
        )

    shell_completion.add_completion_class(Bash)
