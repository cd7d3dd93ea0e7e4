"""`env`: the scope's variables for a POSIX shell, to be sourced: `. ./profile.env`."""

from __future__ import annotations

from commbench.export.source import Exported, Source, comment, lines, settings, unbound, without


def write(source: Source) -> Exported:
    scope = source.scope
    head = source.heading("Settings of ranks; source this where they are started: . FILE")
    notes = unbound(scope)
    if not scope.env:
        notes.append("the scope has no settings: the file sets nothing")
    unset = [f"unset {name}" for name in without(scope)]
    exports = [f"export {name}={quoted(value)}" for name, value in settings(scope).items()]
    told = [line for note in notes for line in comment(note)]
    return Exported(lines(head, told, unset, exports), notes)


def quoted(value: str) -> str:
    """Between single quotes, always: in there a shell knows no other character."""
    return "'" + value.replace("'", "'\\''") + "'"
