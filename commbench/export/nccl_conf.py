"""`nccl-conf`: the scope's settings of NCCL, as a file that NCCL itself reads.

By `setEnvFile` in NCCL's src/misc/param.cc: KEY=VALUE, nothing is trimmed, nothing can be quote, # begins a comment
in the first column only, names and values are cut at 1023 bytes. The process's own environment wins over the file.
"""

from __future__ import annotations

from commbench.errors import UsageError
from commbench.export.source import Exported, ExportSource, comment, lines, settings, unbound, without

_PREFIX = "NCCL_"
_MOST_BYTES = 1023


def write(source: ExportSource) -> Exported:
    scope = source.scope
    head = source.heading(
        "Settings of NCCL: name this file in NCCL_CONF_FILE, in place of ~/.nccl.conf, or let it be /etc/nccl.conf. "
        "A variable that is set in the environment wins over the one in here."
    )
    values = {name: value for name, value in settings(scope).items() if name.startswith(_PREFIX)}
    for name, value in values.items():
        _check(name, value)
    notes = unbound(scope)
    if others := [name for name in settings(scope) if not name.startswith(_PREFIX)]:
        notes.append(f"not NCCL's, so not in it: {', '.join(others)} (see --format env)")
    if absent := without(scope):
        notes.append(f"a file cannot unset variables: {', '.join(absent)} must not be set, nor be in /etc/nccl.conf")
    if not values:
        notes.append("the scope sets no variable of NCCL: the file sets nothing")
    comments = [line for note in notes for line in comment(note)]
    return Exported(lines(head, comments, [f"{name}={value}" for name, value in values.items()]), notes)


def _check(name: str, value: str) -> None:
    """Raise `UsageError` for what NCCL would read otherwise."""
    for what, text in (("name", name), ("value", value)):
        if (size := len(text.encode("utf-8", "surrogateescape"))) > _MOST_BYTES:
            raise UsageError(
                f"the {what} of {name[:40]} has {size} bytes, and NCCL reads {_MOST_BYTES} of them from a file",
                hint="--format env has no such limit",
            )
    if any(end in value for end in "\n\r"):
        raise UsageError(
            f"the value of {name} is {value!r}, and in NCCL's file a value ends with its line",
            hint="--format env writes any value",
        )
