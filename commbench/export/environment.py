"""`env`: the scope's variables for a POSIX shell, to be sourced: `. ./profile.env`."""

from __future__ import annotations

from commbench.export.source import Exported, ExportSource, comment, lines, settings, unbound, without


def write(source: ExportSource) -> Exported:
    scope = source.scope
    head = source.heading("Settings of ranks; source this where they are started: . FILE")
    notes = unbound(scope)
    if not scope.env:
        notes.append("the scope has no settings: the file sets nothing")
    unset = [f"unset {name}" for name in without(scope)]
    exports = [f"export {name}={quote(value)}" for name, value in settings(scope).items()]
    comments = [line for note in notes for line in comment(note)]
    return Exported(lines(head, comments, unset, exports), notes)


def quote(value: str) -> str:
    """Return `value` between single quotes, always: in there a shell knows no other character."""
    return "'" + value.replace("'", "'\\''") + "'"
