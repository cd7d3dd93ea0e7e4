"""Packages of others, used as they are installed: are they there, what are their files, what do drivers say."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "tests/programs"


def needed(*packages: str) -> None:
    """Skip the module where one is not installed, or where torch does not load commbench."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed; make test-programs does", allow_module_level=True)
    loaded = [entry.value for entry in importlib.metadata.entry_points(group="torch.backends")]
    if "commbench_autoload:activate" not in loaded:
        pytest.skip("torch does not load commbench here: install it again", allow_module_level=True)


def digest(*packages: str) -> str:
    """One digest of all Python files of packages."""
    told = hashlib.sha256()
    for name in packages:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            told.update(path.read_bytes())
    return told.hexdigest()


def run(program: str, *words: object, under: Sequence[object] = ()) -> tuple[list[str], str, str]:
    """Start a driver on 4 ranks, `under` a command of commbench: the losses of its steps, stdout unfolded, stderr."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    before = [sys.executable, "-m", "commbench", *under, "--"] if under else []
    command = [str(word) for word in (*before, *torchrun, FOLDER / program, *words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COMMBENCH_EXPLAIN": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return re.findall(r"step \d+ loss (\S+)", done.stdout), unfolded(done.stdout), done.stderr


def unfolded(text: str) -> str:
    """Return what commbench has printed with each exchange on a line of its own, however wide a terminal is."""
    return re.sub(r"\n {4}(?=\S)", " ", text)
