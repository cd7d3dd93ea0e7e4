"""Folders of results and of temporary files."""

from __future__ import annotations

import errno
import re

from commbench.doctor.finding import Finding, fail, note, ok, warn
from commbench.doctor.system import System
from commbench.units import format_size

_NETWORK = re.compile(
    r"nfs\d?|lustre|gpfs|beegfs|cifs|smb\d?|ceph|glusterfs|afs|panfs|wekafs|pvfs2|orangefs|fuse\.(?!overlayfs).*"
)
_MI = 1 << 20
_CANNOT_LOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def results(system: System) -> Finding:
    """Look at the folder that `commbench sweep` would write to from here."""
    wanted = f"{system.folder.rstrip('/')}/results"
    folder = wanted if system.exists(wanted) else system.folder
    kind, value = _describe(system, wanted, folder)
    _, free = system.space(folder)
    try:
        system.try_lock(folder)
    except OSError as error:
        if error.errno in _CANNOT_LOCK:
            return fail(
                f"{value}, and files cannot be locked: {error.strerror}",
                "commbench sweep locks its run folder, so that no two sweeps write into it",
                "commbench sweep --out DIR on another file system; for Lustre mount with -o flock",
            )
        return warn(
            f"{wanted}: {error.strerror}", "commbench sweep cannot write here", "change the folder, or --out DIR"
        )
    if free < 500 * _MI:
        return warn(value, "a sweep that fills the disk stops", "make room, or --out DIR on another file system")
    if _NETWORK.fullmatch(kind):
        return note(
            value,
            "needed for several hosts; on one, each write waits for the network, between samples and not in them",
            "on one machine a local disk is quicker: --out DIR",
        )
    return ok(value)


def temporary(system: System) -> Finding:
    asked = system.environ.get("TMPDIR", "")
    folder = system.temporary_folder
    if asked and not system.exists(asked):
        return warn(f"TMPDIR={asked} is not there", f"{folder} is used instead", "make it, or unset TMPDIR")
    kind, value = _describe(system, folder, folder)
    _, free = system.space(folder)
    if free < 100 * _MI:
        return warn(value, "launchers and libraries keep sockets and shared files there", "make room, or set TMPDIR")
    if _NETWORK.fullmatch(kind):
        return warn(
            value,
            "launchers and libraries keep sockets and shared memory there: slow, or broken, over a network",
            "set TMPDIR to a local disk: export TMPDIR=/tmp",
        )
    return ok(value)


def _describe(system: System, shown: str, folder: str) -> tuple[str, str]:
    """Return the kind of file system, and a line of facts."""
    kind = _file_system(system, system.real_path(folder))
    _, free = system.space(folder)
    return kind, f"{shown}, {kind or 'unknown file system'}, {format_size(free)} free"


def _file_system(system: System, path: str) -> str:
    """Return the file system of the innermost mount around `path`; of several on one place the last one is seen."""
    best, kind = -1, ""
    for line in (system.text("/proc/self/mounts") or "").splitlines():
        point, of_point = line.split()[1:3]
        point = point.replace("\\040", " ").rstrip("/")
        if (path + "/").startswith(point + "/") and len(point) >= best:
            best, kind = len(point), of_point
    return kind
