"""Small files below a root: /sys itself, or a recorded copy of it. What is not there, or cannot be read, is None."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from commbench.machine import cpulist

_MOST_BYTES = 1 << 16


class Files:
    """Paths are relative to the root and have no link in them; nothing here raises."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, path: str) -> str | None:
        try:
            with open(self.root / path, "rb") as file:
                return file.read(_MOST_BYTES).decode(errors="replace").strip()
        except (OSError, ValueError):  # ValueError: a path with a zero in it
            return None

    def names(self, folder: str) -> list[str]:
        """Return what is in a folder, mlx5_2 before mlx5_10."""
        try:
            return sorted((path.name for path in (self.root / folder).iterdir()), key=natural)
        except (OSError, ValueError):
            return []

    def target(self, link: str) -> str | None:
        """Return the path that a link leads to. In recordings links are files of text, which every archive keeps."""
        try:
            target = str((self.root / link).readlink())
        except (OSError, ValueError):
            target = self.text(link) or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
        return path if target and not path.startswith(("/", "..")) else None

    def number(self, path: str) -> int | None:
        text = self.text(path) or ""
        return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None

    def cpus(self, path: str) -> frozenset[int] | None:
        """Return the CPUs of a list; None where it is none."""
        try:
            text = self.text(path)
            return frozenset(cpulist.parse(text)) if text else None if text is None else frozenset()
        except ValueError:
            return None


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
