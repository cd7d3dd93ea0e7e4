"""Files that are there as a whole or not at all, in run folders and where users want them; and locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def atomic_file(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of `path` when it is whole: whoever reads finds the old one or the new.

    A link at `path` is replaced, not followed, and nothing that is there already is written to. After a failure
    nothing is left. An `OSError` names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(temporary, _NEW_FILE, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        raise named(error, path, str(temporary)) from None


def named(error: BaseException, path: Path, temporary: str = "") -> BaseException:
    """Return `error`, which names the file: the system does not where it is open already."""
    if isinstance(error, OSError) and error.filename in (None, temporary):
        error.filename, error.filename2 = str(path), None
    return error


def write_atomically(path: Path, data: str | bytes, mode: int = 0o666) -> None:
    """Write `path` so that whoever reads it finds the old content or the new, never a part."""
    with atomic_file(path, mode) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_named(path: Path, data: str | bytes) -> None:
    """Write a file that a user has named: atomically, where a link leads, and in place what is no regular file.

    So a device or a pipe stays one, and so does a link. Raises `OSError`.
    """
    with contextlib.suppress(FileNotFoundError):
        about = path.stat()
        ours = [os.fstat(number) for number in (1, 2) if _is_open(number)]  # /dev/stdout, which has a position
        if not stat.S_ISREG(about.st_mode) or any(os.path.samestat(about, one) for one in ours):
            with open(os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC), "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
            return
    write_atomically(path.resolve(), data)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class Lock:
    """Holds an flock, which the kernel frees when its holder ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def take(self, *, shared: bool = False, wait_s: float = 0.0) -> bool:
        """Return whether it is held now; others may still hold it after `wait_s` seconds."""
        # Who can open it can hold it: nobody else shall.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # one of an older version, or of a file system without modes
            os.fchmod(descriptor, 0o600)
        self._file = open(descriptor, "ab")  # noqa: SIM115 - held until release or the end of the process
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    self._file.close()
                    self._file = None
                    return False
                time.sleep(0.05)

    @property
    def descriptor(self) -> int | None:
        """Return what a child has to keep open so that the lock is held until it has ended; None: it is not held."""
        return None if self._file is None else self._file.fileno()

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
