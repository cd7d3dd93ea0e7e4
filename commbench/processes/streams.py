"""stdout and stderr of this process. One that takes no more ends the output, not what is measured."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

_NOBODY_READS = (errno.EPIPE, errno.EBADF)
_ended: dict[int, OSError] = {}  # by descriptor, the first failure


class _Ending(io.FileIO):
    """Writes until that fails: a full disk, a reader or a terminal that has gone. Then it takes all, and drops it."""

    def __init__(self, descriptor: int, number: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._number = number

    def write(self, data: object) -> int | None:  # type: ignore[override]
        if self._number not in _ended:
            try:
                return super().write(data)  # type: ignore[arg-type]
            except OSError as error:
                _ended[self._number] = error
        return memoryview(data).nbytes  # type: ignore[arg-type]


def guard() -> None:
    """Let writes to stdout and stderr never raise; `ended` says what has become of them.

    One that is closed is opened on /dev/null: no file that is opened later shall be taken for it. A stream that is
    not on its descriptor, as in tests, is left alone.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        _ended.pop(number, None)
        stream = getattr(sys, name)
        descriptor = number
        if stream is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest one that is free
            if not _is_open(number):
                os.dup2(descriptor, number, inheritable=True)
            _ended[number] = OSError(errno.EBADF, os.strerror(errno.EBADF))
            stream = open(descriptor, "w", closefd=False)  # noqa: SIM115 -- gives its encoding to the one below
        elif not isinstance(stream, io.TextIOWrapper) or not _is_on(stream, number):
            continue
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        raw = _Ending(descriptor, number)
        unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
        guarded = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, guarded)


def ended(name: str) -> OSError | None:
    """Return why `stdout` or `stderr` takes no more, after what was written so far; None while it does."""
    number = {"stdout": 1, "stderr": 2}[name]
    stream = getattr(sys, name)
    if stream is not None:
        with contextlib.suppress(ValueError):  # closed
            stream.flush()
    return _ended.get(number)


def nobody_reads(error: OSError) -> bool:
    """Return whether the reader has gone, which is its own business; else what was printed has been lost."""
    return error.errno in _NOBODY_READS


def _is_on(stream: io.TextIOWrapper, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError):  # not on a descriptor, or closed
        return False


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
