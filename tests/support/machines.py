"""Recorded machines for tests: tests/data/machines/make.py says what each is like."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "machines"
NAMES = ("ndv4", "dgx", "pc")


def tree(name: str) -> dict[str, str]:
    """Path -> content of one machine."""
    content: dict[str, str] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def unpack(files: str | dict[str, str], folder: Path) -> Path:
    """Makes a machine, by its name or from what `tree` gave, below `folder`, for `commbench topo --root`."""
    for path, text in (tree(files) if isinstance(files, str) else files).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text + "\n")
    return folder
