"""A machine written down as a folder of small files, from which the same is read elsewhere.

Whatever the reader looked at is kept, and nothing else; links are kept as files of text. No address, host name or
serial number is among it.
"""

from __future__ import annotations

from pathlib import Path

from commbench.errors import UsageError
from commbench.files import write_atomically
from commbench.machine import cpulist, driver, sysfs
from commbench.machine.files import Files
from commbench.machine.machine import Machine
from commbench.machine.pci import is_gpu

_BUS = "sys/bus/pci/devices/"


class RecordingFiles(Files):
    """Files that keep what was read of them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.seen: dict[str, str] = {}

    def text(self, path: str) -> str | None:
        text = super().text(path)
        if text is not None:
            self.seen[path] = text
        return text

    def target(self, link: str) -> str | None:
        target = super().target(link)
        if target is not None:
            self.seen[link] = "../" * link.count("/") + target
        return target


def record(root: Path, out: Path) -> tuple[Machine, int]:
    """Write the machine under `root` to `out`, a new or empty folder; return it, and the number of files."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{str(out)!r} is there and not empty", hint="name a new folder: --record DIR")
        files = RecordingFiles(root)
        report = sysfs.read_driver(root)
        machine = sysfs.assemble(files, report)
        contents = _needed(files, machine)
        if report.gpus:
            contents[driver.FILE] = driver.to_json(report)
        for path, text in contents.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out / path, text if text.endswith("\n") else text + "\n")
    except OSError as error:
        raise UsageError(
            f"cannot write {str(error.filename or out)!r}: {error.strerror}", hint="choose a folder of yours"
        ) from error
    return machine, len(contents)


def _needed(files: RecordingFiles, machine: Machine) -> dict[str, str]:
    """Return the files less virtual interfaces, other devices of the PCI bus (hundreds), and the rest of meminfo."""
    contents = {path: text for path, text in files.seen.items() if "/devices/virtual/" not in text}
    for link in [path for path in contents if path.startswith(_BUS)]:
        folder = files.target(link) or ""
        if not is_gpu(files, folder):
            del contents[link]
            contents.pop(f"{folder}/class", None)
    for path, text in contents.items():
        if path.endswith("/meminfo"):
            contents[path] = "\n".join(line for line in text.splitlines() if "MemTotal" in line)
    contents.setdefault(sysfs.ONLINE, cpulist.text(machine.cpus))
    return contents
