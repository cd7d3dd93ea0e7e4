"""What killed ranks leave behind: MPI libraries remove their files themselves, but only in a good end."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import stat
from collections.abc import Collection
from pathlib import Path

_SHARED = Path("/dev/shm")
_MARK = f" {_SHARED}/"
# How libraries that ranks load begin the names of their shared memory, and commbench those of its own.
_NAMES = re.compile(
    r"(commbench-|mpich|mpi|MPI|ompi|openmpi|vader_segment|sm_segment|osc_|pmix|prte|ucx_|fi_shm|ofi_|psm|efa|nccl|torch_"
    r"|gloo|mv2|impi|Intel_MPI|shm-col-space)"
)


# Of those, what MPI libraries have mapped from its creation to its removal: what nobody holds is garbage.
_OF_MPI = re.compile(r"mpich_shm_|vader_segment|sm_segment|osc_|Intel_MPI|impi")


def mapped() -> list[str]:
    """Return the files of shared memory that this process has mapped now."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if _MARK in line}
    return sorted(path for path in paths if not path.endswith(" (deleted)"))


def session(folder: Path) -> Path:
    """Return where an mpiexec that can be told so keeps the files of a launch, which has `folder`."""
    return folder / "session"


def rendezvous(folder: Path) -> Path:
    """Return the file by which forked ranks of a launch meet."""
    return folder / "rendezvous"


def remove(folder: Path, *, foreign: bool = False) -> None:
    """Remove what a launch has left, once its ranks are gone: its session, their rendezvous, and shared memory.

    `folder` is that of the launch. What a `foreign` one says may be forged: then shared memory goes only if it has a
    name that ranks give, and no process has it.
    """
    shutil.rmtree(session(folder), ignore_errors=True)  # stops at a link
    with contextlib.suppress(OSError):
        rendezvous(folder).unlink()
    _remove_unheld(folder / "order.json")
    for description in folder.glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            about = json.loads(description.read_text())
            if about["host"] == platform.node():
                names = [Path(name) for name in about.get("shared_memory", [])]
                if foreign and names:
                    held = _held()
                    names = [name for name in names if _NAMES.match(name.name) and str(name) not in held]
                _remove(names)


def _remove_unheld(job: Path) -> None:
    """Remove shared memory of MPI ranks that were killed before they could write down what they had mapped.

    It is younger than their job, and no process has it.
    """
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        if json.loads(job.read_text())["outer"]["transport"] == "mpi":
            began = job.stat().st_mtime
            if young := [path for path in _SHARED.iterdir() if _OF_MPI.match(path.name) and _ctime(path) >= began]:
                held = _held()
                _remove([path for path in young if str(path) not in held])


def _ctime(path: Path) -> float:
    try:
        return path.lstat().st_ctime
    except FileNotFoundError:
        return 0.0


def _held() -> Collection[str]:
    """Return the shared memory that processes of this user have mapped or open."""
    held: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # somebody else's, or gone
            held |= {line.split(maxsplit=5)[5] for line in (process / "maps").read_text().splitlines() if _MARK in line}
            for number in (process / "fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile
                    held.add(str(number.readlink()))
    return held


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            about = path.lstat()
            if path.parent == _SHARED and about.st_uid == os.getuid() and stat.S_ISREG(about.st_mode):
                path.unlink()
