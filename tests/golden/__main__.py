"""Write what must not change by itself, as it is now."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests import golden

golden.FOLDER.mkdir(exist_ok=True)
for name in golden.TEXTS:
    (golden.FOLDER / name).write_text(golden.text(name))
with tempfile.TemporaryDirectory() as parent:
    for name in golden.SCHEDULES:
        (Path(parent) / name).mkdir()
    found = {name: golden.losses(name, Path(parent) / name) for name in golden.SCHEDULES}
(golden.FOLDER / "losses.json").write_text(json.dumps(found, indent=1) + "\n")
