"""What a page of docs/guide says to type, and a shell in which it works."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tests.conftest import REPOSITORY, environment

PAGE = REPOSITORY / "docs/guide/end-to-end.md"
_PROGRAMS = {"commbench": "-m commbench", "torchrun": "-m torch.distributed.run", "python": ""}


def typed(page: Path = PAGE) -> list[str]:
    """Block by block."""
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def shell(folder: Path) -> dict[str, str]:
    """An environment in which the names of programs are this Python's, and commbench this checkout's."""
    folder.mkdir()
    for name, words in _PROGRAMS.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    return environment(REPOSITORY / "kernels", PATH=os.pathsep.join([str(folder), os.environ["PATH"]]))
