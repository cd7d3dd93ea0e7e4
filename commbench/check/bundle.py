"""One file to send: a check's run folder, or what of it names nobody."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from commbench.check import kept
from commbench.errors import UsageError
from commbench.files import atomic_file
from commbench.output.nameless import Hidden
from commbench.run_folder import RunFolder

_ENDING = ".tar.gz"
_NAMELESS = ("pairs.csv", "pairs.json")  # files that hold numbers of ranks alone


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
    hosts = [str(host["host"]) for host in (found.get("found") or {}).get("hosts") or ()]
    hide = Hidden(hosts)
    yield "report.txt", hide.text(report).encode(errors="backslashreplace")
    yield kept.NAME, json.dumps(hide.value(found), indent=1).encode()
    for name in _NAMELESS:
        if (folder.path / name).is_file():
            yield name, hide.text((folder.path / name).read_text()).encode()
