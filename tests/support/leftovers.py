"""What a run leaves outside its folder, on a machine that others use at the same time.

All processes of a run inherit a variable that no other process has, and a TMPDIR of its own, where everything counts.
Of what all users share, in /tmp and /dev/shm, that counts which a process of the run had open or mapped while it lived,
or which has the pid of one in its name. A thread looks for that as long as the run lasts. A network namespace without a
name lives as long as a process is in it or holds it; one with a name is known by its number.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil

from commbench.emulated import Emulated
from commbench.fabric import network
from tests.conftest import environment

_SHARED = (Path("/tmp"), Path("/dev/shm"))
_NAMES = Path("/run/netns")
_VARIABLE = "COMMBENCH_TEST_RUN"
_NUMBER = re.compile(r"(?<![0-9A-Za-z])\d+(?![0-9A-Za-z])")  # of what is random, digits between letters are none
# 5 KB that a killed mpiexec of MPICH leaves: it has the folder in its program, and tells the random name to nobody.
_NOT_OURS = "hydra_hwloc_xmlfile_"
_EVERY_S = 0.05
_LOOKS = 20  # at a new name, and whether the run has it open, before it is a stranger's


class Watch:
    """Around a run whose processes have `environment`; `left` says what there still is of it."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty and stays so, but for temporary files."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._word = uuid.uuid4().hex
        self._before = _shared()
        self._interfaces = _interfaces()
        self._namespaces: set[str] = set()
        self._looks: dict[Path, int] = {}
        self._files: set[Path] = set()
        self._pids: set[int] = set()
        self._own = _namespaces(os.getpid())
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def environment(self, **extra: str) -> dict[str, str]:
        return environment(**{_VARIABLE: self._word, "TMPDIR": str(self._folder), **extra})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def processes(self) -> list[int]:
        """Those of the run that are alive, but for zombies, which run no more."""
        return [pid for pid in map(int, _numbers()) if self._is_ours(pid)]

    def left(self) -> dict[str, set[str]]:
        """By kind; empty if nothing is left."""
        alive = self.processes()
        now = _shared() - self._before
        named = {path for path in now if self._pids & {int(number) for number in _NUMBER.findall(path.name)}}
        left = {
            "processes": {str(pid) for pid in alive},
            "namespaces": self._namespaces & (_named() | {found for pid in alive for found in _namespaces(pid)}),
            "interfaces": (_interfaces() - self._interfaces) & _of_fabrics(),
            "files": {str(path) for path in (now & self._files) | named},
            "temporary files": {path.name for path in self._folder.iterdir()},
        }
        return {kind: items for kind, items in left.items() if items}

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            self.look()

    def look(self) -> None:
        """Note what the run's processes have open now."""
        with self._lock:
            alive = self.processes()
            self._pids.update(alive)
            self._namespaces |= {found for pid in alive for found in _namespaces(pid)} - self._own
            new = [path for path in _shared() - self._before - self._files if self._looks.get(path, 0) < _LOOKS]
            if new and alive:
                opened = {path for pid in alive for path in _opened(pid)}
                for path in new:
                    self._looks[path] = self._looks.get(path, 0) + 1
                    if any(name == str(path) or name.startswith(f"{path}/") for name in opened):
                        self._files.add(path)

    def _is_ours(self, pid: int) -> bool:
        try:
            if f"{_VARIABLE}={self._word}".encode() not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return False
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except (OSError, psutil.Error):
            return False


def _numbers() -> Iterator[str]:
    return (path.name for path in Path("/proc").iterdir() if path.name.isdigit())


def _shared() -> set[Path]:
    found = set()
    for folder in _SHARED:
        with contextlib.suppress(OSError):
            found |= {path for path in folder.iterdir() if not path.name.startswith(_NOT_OURS)}
    return found


def _opened(pid: int) -> set[str]:
    """Names of files that the process has open or mapped."""
    found = {str(target) for target in _descriptors(pid)}
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        found |= {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    return {name.removesuffix(" (deleted)") for name in found}


def _descriptors(pid: int) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield link.readlink()


def _namespaces(pid: int) -> set[str]:
    """Network namespaces that the process is in, or holds open."""
    targets = {*_descriptors(pid)}
    with contextlib.suppress(OSError):
        targets.add(Path(f"/proc/{pid}/ns/net").readlink())
    return {str(target) for target in targets if str(target).startswith("net:[")}


def _named() -> set[str]:
    """Network namespaces that have names."""
    found = set()
    with contextlib.suppress(OSError):
        for path in _NAMES.iterdir():
            with contextlib.suppress(OSError):
                found.add(f"net:[{path.stat().st_ino}]")
    return found


def _interfaces() -> set[str]:
    """Of this network namespace."""
    return {line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]}


def _of_fabrics() -> set[str]:
    """Names of all interfaces of emulated clusters."""
    fabric = Emulated(nodes=16, link="1gbit", spines=8)
    return set(re.findall(r"(?:link add|peer name) (\S+)", network.switch(fabric, [*range(16)])))
