"""Every command of docs/guide/end-to-end.md is understood; `make test-all` runs them as well."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from commbench.emulated import Emulated
from commbench.profile import file
from tests.conftest import environment
from tests.support import forked_command, profiles
from tests.support.page import typed

# A command, and what of it can be seen in a moment.
MEANT = {
    "sweep": ("--dry-run", "--format", "json"),
    "tune": ("--dry-run",),
    "train": ("--show-config",),
    "train ab": ("--show-config",),
    "export": (),
}


def files(block: str) -> dict[str, str]:
    """Those that the block writes."""
    return dict(re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", block, re.DOTALL | re.MULTILINE))


def commands(block: str) -> list[list[str]]:
    block = re.sub(r"<<'END'\n.*?^END$", "", block, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    return [shlex.split(line) for line in block.splitlines() if line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the profile that section 2 makes."""
    cluster = Emulated(nodes=2, link="100mbit", message_overhead=30000)
    choice = profiles.choice("all_to_all", "2d_intra_first")
    made = profiles.profile(choice, nodes=2, ranks_per_node=2, fabric=str(cluster))
    file.save(made, tmp_path / "profile.json")
    for block in typed():
        for name, text in files(block).items():
            (tmp_path / name).write_text(text)
    return tmp_path


def test_every_command_is_understood(folder: Path) -> None:
    seen = []
    for block in typed():
        for words in commands(block):
            if words[0] == "commbench":
                name = " ".join(words[1:3]) if words[1:3] == ["train", "ab"] else words[1]
                meant = (*itertools.takewhile(lambda word: word != ">", words[1:]), *MEANT[name])
                told = forked_command.run(*meant, cwd=folder)
                assert told.returncode == 0, told.stderr
                seen.append((name, told.stdout))
            else:
                assert words[0] in ("cat", "python", "torchrun"), words
    assert [name for name, _ in seen] == ["sweep", "tune", "export", "export", "train", "train ab"]
    said = dict(seen)
    planned = [json.loads(line) for line in said["sweep"].splitlines()]
    assert len(planned) == 6 and not any(item["skip"] for item in planned)
    assert "profile.json" in said["train"] and "fabric" in said["train"]


def test_its_programs_are_python(folder: Path) -> None:
    (why,) = (block for block in typed() if block.startswith("python - <<"))
    program = re.findall(r"^python - <<'END'\n(.*?)^END$", why, re.DOTALL | re.MULTILINE)[0]
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False,
                          env=environment())  # fmt: skip
    assert done.returncode == 0 and "0 .. None 2d_intra_first" in done.stdout, done.stderr
    ast.parse((folder / "exchange.py").read_text())
