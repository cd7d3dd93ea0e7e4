"""Errors that are the user's to mend: each says what is wrong, the value, what is allowed and what to do."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130  # codes of every command


class CommbenchError(Exception):
    """Ends a command with `exit_code`, one `error:` line and one `hint:` line, and no traceback."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # below the message where a program ends with a traceback
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(CommbenchError):
    """Something typed, or written in a recipe, cannot be meant."""


class EnvironmentProblem(CommbenchError):
    """The machine lacks something that the request needs."""


class CorruptFile(CommbenchError):
    """A file on disk does not hold what commbench wrote there."""


# What an operation on a file ends with where the disk, and not the file, is the reason.
_OF_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE}


def is_of_storage(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _OF_STORAGE


def of_storage(error: OSError, path: Path | str, hint: str) -> EnvironmentProblem:
    """Return the error for a disk that takes no more; `path` is what was written where the system does not say."""
    what = "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror
    return EnvironmentProblem(f"{error.filename or path}: {what}", hint=hint)


@contextlib.contextmanager
def storage(path: Path, hint: str) -> Iterator[None]:
    """Let a disk that takes no more end the work in `path` in words. `hint` says how to go on when there is room."""
    try:
        yield
    except OSError as error:
        if not is_of_storage(error):
            raise
        raise of_storage(error, path, hint) from error


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
