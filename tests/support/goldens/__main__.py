"""Write what must not change by itself, as it is now."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.support import goldens

goldens.FOLDER.mkdir(exist_ok=True)
for name in goldens.TEXTS:
    (goldens.FOLDER / name).write_text(goldens.text(name))
with tempfile.TemporaryDirectory() as parent:
    for name in goldens.SCHEDULES:
        (Path(parent) / name).mkdir()
    found = {name: goldens.losses(name, Path(parent) / name) for name in goldens.SCHEDULES}
(goldens.FOLDER / "losses.json").write_text(json.dumps(found, indent=1) + "\n")
