"""Files of run folders as somebody edits them, or as a version without checksums wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commbench.serialise import unseal


def change_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, whose checksum goes."""
    path.write_text(json.dumps({**json.loads(unseal(path.read_bytes())), **changes}))


def without_checksums(path: Path) -> str:
    """The text of a JSONL file as earlier versions wrote it."""
    return "".join(unseal(line).decode() + "\n" for line in path.read_bytes().splitlines())
