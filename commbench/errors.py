"""Errors that are the user's to mend: each says what is wrong, the value, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130  # codes of every command


class CommbenchError(Exception):
    """Ends a command with `exit_code`, one `error:` line and one `hint:` line, and no traceback."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(CommbenchError):
    """Something typed, or written in a recipe, cannot be meant."""


class EnvironmentProblem(CommbenchError):
    """The machine lacks something that the request needs."""


class CorruptFile(CommbenchError):
    """A file on disk does not hold what commbench wrote there."""


def said(error: BaseException) -> str:
    """An error of any kind in one line."""
    if isinstance(error, CommbenchError):
        return f"{error} ({error.hint})"
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def unknown(kind: str, value: str, allowed: Iterable[str], *, hint: str = "") -> UsageError:
    """The error for a name that is not in a table: names the nearest ones, or lists them all."""
    names = sorted(allowed)
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    if not hint:
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UsageError(f"unknown {kind} {value!r}", hint=hint)
