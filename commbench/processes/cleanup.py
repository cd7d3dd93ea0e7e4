"""What killed ranks leave behind: MPI libraries remove their files themselves, but only in a good end."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from pathlib import Path

_SHARED = Path("/dev/shm")


def mapped() -> list[str]:
    """Return the files of shared memory that this process has mapped now."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if f" {_SHARED}/" in line}
    return sorted(path for path in paths if not path.endswith(" (deleted)"))


def session(folder: Path) -> Path:
    """Return where an mpiexec that can be told so keeps the files of a launch, which has `folder`."""
    return folder / "session"


def remove(folder: Path) -> None:
    """Remove what a launch has left, once its ranks are gone: its session, and shared memory that they had mapped.

    `folder` is that of the launch.
    """
    shutil.rmtree(session(folder), ignore_errors=True)
    for description in folder.glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError):
            about = json.loads(description.read_text())
            if about["host"] == platform.node():
                _remove(about.get("shared_memory", []))


def _remove(paths: list[str]) -> None:
    for path in map(Path, paths):
        with contextlib.suppress(OSError):
            if path.parent == _SHARED and path.stat().st_uid == os.getuid():
                path.unlink()
