"""`commbench export`: a profile in the words of another program, on stdout or in a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from commbench.console import stderr_console
from commbench.errors import UsageError
from commbench.export import export
from commbench.export.source import ExportSource
from commbench.files import write_named
from commbench.profile.file import load


def run(path: Path, *, format_: str, scope: str, out: Path | None, allow_env: Sequence[str] = ()) -> int:
    """Write the profile in the words of another program; return 0. Raises `CommbenchError`."""
    if out is not None and out.exists() and out.samefile(path):
        raise UsageError(f"--out {str(out)!r} is the profile itself", hint="--out another file; without it, stdout")
    exported = export(format_, ExportSource(load(path), path, scope, allowed=tuple(allow_env)))
    data = exported.text.encode("utf-8", "surrogateescape")  # variables may hold any bytes
    for note in exported.notes:
        stderr_console().print(f"note: {note}")
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return 0
    try:
        write_named(out, data)
    except OSError as error:
        raise UsageError(
            f"cannot write {str(out)!r}: {error.strerror}", hint="--out FILE, in a folder that is there and yours"
        ) from error
    return 0
