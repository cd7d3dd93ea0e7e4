"""docs/project/seeds.md: every system of the list, commands that are understood, figures that other pages have."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from commbench.profile import file
from tests.bench.__main__ import BENCHES, WITH_ARGUMENTS
from tests.conftest import REPOSITORY, here
from tests.support import forked_command, profiles

PAGE = REPOSITORY / "docs/project/seeds.md"
SYSTEMS = (
    "Tutel", "MoNTA", "MoNTA's fork of DeepSpeed", "fairseq", "DeepSpeed", "FastMoE", "DeepSpeed-TED", "Parm",
    "EPS-MoE", "MoESys", "AlpaComm", "TeraPipe", "SWARM", "ATOM", "KARMA", "Slapo", "Partially masked networks",
)  # fmt: skip
FIELDS = ("Here", "Measured", "Published", "Why they differ")
# What of a command can be seen in a moment.
SHORT = {
    "sweep": ("--dry-run", "--format", "json"), "train": ("--show-config",), "train ab": ("--show-config",),
    "exec": ("--dry-run",),
}  # fmt: skip
SECTIONS = dict(zip(*[iter(re.split(r"^## (.*)\n", PAGE.read_text(), flags=re.MULTILINE)[1:])] * 2, strict=True))


def typed(section: str) -> list[list[str]]:
    """The commands of a section's block."""
    return [shlex.split(line) for line in re.findall(r"^    (\w+ .*)$", section, re.MULTILINE)]


def field(section: str, name: str) -> str:
    """A point of a section's list, without line breaks."""
    (text,) = re.findall(rf"^- \*\*{name}\*\*(.*?)(?=^- |^$|\Z)", section, re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


def test_every_system_has_a_section_with_all_that_is_asked() -> None:
    assert tuple(SECTIONS) == SYSTEMS
    rows = dict(re.findall(r"^\| \[(.*?)\]\(#.*\) \| .* \| (.*) \|$", PAGE.read_text(), re.MULTILINE))
    assert tuple(rows) == SYSTEMS
    for system, section in SECTIONS.items():
        assert all(field(section, name) for name in FIELDS), system
        assert bool(typed(section)) == (rows[system] in ("yes", "in part")), system
        assert ("not here" in field(section, "Here")) == (rows[system] in ("in part", "not yet")), system


def test_every_command_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commbench.transports.missing", lambda name, **more: "")  # GPUs, that a dry run does not use
    monkeypatch.setattr("commbench.fabric.check", lambda fabric: None)  # the right to make one, and nft
    file.save(profiles.profile(profiles.choice("all_to_all", "bruck")), tmp_path / "p.json")
    seen = set()
    for program, *words in (words for section in SECTIONS.values() for words in typed(section)):
        if program == "make":
            assert words[0] == "bench" and words[1].removeprefix("ARGS=") in (*BENCHES, *WITH_ARGUMENTS), words
            continue
        name = "train ab" if words[:2] == ["train", "ab"] else words[0]
        at = words.index("--") if "--" in words else len(words)
        run = forked_command.run if name == "exec" else here
        done = run(*words[:at], *SHORT[name], *words[at:], cwd=tmp_path)
        assert program == "commbench" and done.returncode == 0, (words, done.stderr)
        if name == "sweep":
            cases = [json.loads(line) for line in done.stdout.splitlines()]
            assert cases and not all(case["skip"] for case in cases), words
        seen.add(name)
    assert seen == SHORT.keys()


@pytest.mark.parametrize("system", SYSTEMS)
def test_measured_figures_are_on_the_pages_that_are_linked(system: str) -> None:
    text = field(SECTIONS[system], "Measured")
    pages = [PAGE.parent / target for target in re.findall(r"\]\(([^)#]*)", text)]
    figures = re.findall(r"\d+(?:\.\d+)?", re.sub(r"\]\([^)]*\)", "", re.sub(r"\d+ x \d+|Tutel [\d.]+", "", text)))
    known = {figure for page in pages for figure in re.findall(r"\d+(?:\.\d+)?", page.read_text())}
    assert [figure for figure in figures if figure not in known] == []
    assert pages or text in (": not measured.",)
