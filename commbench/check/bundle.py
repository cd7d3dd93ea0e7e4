"""One file to send: a check's run folder, or what of it names nobody."""

from __future__ import annotations

import getpass
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from commbench.check import kept
from commbench.errors import UsageError
from commbench.files import atomic_file
from commbench.run_folder import RunFolder

_ENDING = ".tar.gz"
_NAMELESS = ("pairs.csv", "pairs.json")  # files that hold numbers of ranks alone
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE)
_ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w./])/(?:[\w.@+-]+/)*[\w.@+-]+")
_SHORTEST = 2  # letters of a name that is replaced wherever it stands


def check(path: Path) -> None:
    """Raise `UsageError` where a file cannot be written by that name."""
    if not path.name.endswith(_ENDING):
        raise UsageError(f"--bundle {str(path)!r}: unknown kind of file", hint=f"end the name in {_ENDING}")
    if not path.resolve().parent.is_dir() or path.is_dir():
        raise UsageError(f"cannot write {str(path)!r}", hint="a file in a folder that is there, and yours")


def write(folder: RunFolder, target: Path, report: str, *, anonymous: bool) -> None:
    """Write what is to be sent to `target`. report: what the check says, for people. Raises `UsageError`."""
    check(target)
    files = _anonymous(folder, report) if anonymous else _whole(folder, report)
    root = "check" if anonymous else folder.run_id
    try:
        with atomic_file(target) as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, data in files:
                about = tarfile.TarInfo(f"{root}/{name}")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    except OSError as error:
        raise UsageError(f"cannot write {str(target)!r}: {error.strerror}",
                         hint="choose a folder that is there, and yours") from error  # fmt: skip


def _whole(folder: RunFolder, report: str) -> Iterator[tuple[str, bytes]]:
    yield "report.txt", report.encode(errors="backslashreplace")
    for parent, folders, names in os.walk(folder.path):
        folders.sort()
        for path in sorted(Path(parent, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode) and not path.name.startswith("."):
                yield str(path.relative_to(folder.path)), path.read_bytes()


def _anonymous(folder: RunFolder, report: str) -> Iterator[tuple[str, bytes]]:
    """Yield what was found, without hosts, users, paths, addresses and numbers of devices."""
    found = folder.read_json(kept.NAME)
    found.get("asked", {}).pop("against", None)
    hide = _Hidden(found)
    yield "report.txt", hide.text(report).encode(errors="backslashreplace")
    yield kept.NAME, json.dumps(hide.value(found), indent=1).encode()
    for name in _NAMELESS:
        if (folder.path / name).is_file():
            yield name, hide.text((folder.path / name).read_text()).encode()


class _Hidden:
    """Replaces names, each by the same word wherever it stands."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        hosts = {str(host["host"]) for host in (found.get("found") or {}).get("hosts") or ()}
        hosts |= {host.partition(".")[0] for host in hosts}
        self._words = {host: f"host{number}" for number, host in enumerate(sorted(hosts))}
        for name in (_user(), Path.home().name):
            self._words.setdefault(name, "user")
        names = sorted((name for name in self._words if len(name) >= _SHORTEST), key=len, reverse=True)
        self._names = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names) or r"(?!)")

    def text(self, text: str) -> str:
        text = _PATH.sub("/PATH", _ID.sub("ID", _ADDRESS.sub("ADDRESS", text)))
        return self._names.sub(lambda match: self._words[match[0]], text)

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list | tuple) else value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return ""
