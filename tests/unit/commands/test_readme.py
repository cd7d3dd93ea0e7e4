"""Every command of README is understood, as it is typed in a fresh clone; what takes long is planned alone."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from commbench.profile import file
from tests.conftest import REPOSITORY, here
from tests.support import forked_command, profiles

TEXT = (REPOSITORY / "README.md").read_text()
# A command, and what of it can be seen in a moment; "": all of it.
SHORT: dict[str, tuple[str, ...]] = {
    "sweep": ("--dry-run",), "tune": ("--dry-run",), "train ab": ("--show-config",), "exec": ("--dry-run",),
    "check": ("--dry-run",), "plan": ("--help",), "ab": ("--help",), "doctor": ("--help",), "stragglers": ("--help",),
    "advise": (), "prove": (),
}  # fmt: skip


def typed() -> list[list[str]]:
    """The commands of its blocks, without what follows a #."""
    lines = re.findall(r"^    ((?:commbench|cp) .*)$", TEXT, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_command_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").mkdir()
    shutil.copy(REPOSITORY / "examples/hypercube.py", tmp_path / "examples")
    file.save(profiles.profile(profiles.choice("all_to_all", "bruck")), tmp_path / "p.json")
    monkeypatch.setattr("commbench.transports.missing", lambda name, **more: "")  # GPUs, that a dry run does not use
    seen = set()
    for program, *words in typed():
        if program == "cp":
            shutil.copy(tmp_path / words[0], tmp_path / words[1])
            continue
        name = "train ab" if words[:2] == ["train", "ab"] else words[0]
        at = words.index("--") if "--" in words else len(words)
        shortened = [*words[:at], *SHORT[name], *words[at:]]
        run = forked_command.run if name == "exec" else here
        done = run(*shortened, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)
        seen.add(name)
    assert seen == SHORT.keys()


def test_what_prove_prints_is_what_it_says(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "examples/hypercube.py", tmp_path / "my.py")
    answer = next(line for line in here("prove", "my.py", cwd=tmp_path).stdout.splitlines() if "answer" in line)
    assert f"    {answer}\n" in TEXT


def test_it_is_short_and_its_pictures_are_there() -> None:
    assert len(TEXT.splitlines()) < 120
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", TEXT)
    assert len(pictures) == 3 and all((REPOSITORY / path).is_file() for path in pictures)
