"""Other people's files, given and found: docs/project/foreign.md says what is read of each, and that is so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from commbench.errors import UsageError
from commbench.formats import read
from commbench.machine import foreign
from commbench.record.imports import files
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "tests/data/foreign"
PAGE = (REPOSITORY / "docs/project/foreign.md").read_text()
SAID = re.findall(
    r"^\| `([\w.-]+\.\w+)` \|(?: [^|]+ \|)? ([^|]+) \|$", PAGE.partition("## Every file")[2], re.MULTILINE
)
RANKS_OF_OSU = 8  # which it does not print


def many(count: int, what: str) -> str:
    return f"{count} {what}{'s'[: count != 1]}"


def found(path: Path, folder: Path) -> str:
    """What is read of a file, in the words of the page. Raises `UsageError` for one that is refused."""
    if path.name.startswith("m-"):
        return f"a matrix of {many(len(path.read_text().splitlines()), 'rank')}, for `splits=matrix`"
    if "topo" in path.name or path.name.startswith("smi"):
        machine = foreign.read(path)
        return f"{many(len(machine.gpus), 'GPU')}, {many(len(machine.nics), 'card')}"
    if path.name.startswith(("kineto", "et-", "torch-")):
        of_rank = folder / "rank-0.json"
        shutil.copy(path, of_rank)
        trace = files.read([of_rank], None, None).trace
        return f"{trace.ranks} ranks: {', '.join(sorted({call.collective for call in trace.calls}))}"
    log = read(path, ranks=RANKS_OF_OSU if path.name.startswith("osu") else None)
    passed = f", {many(len(log.passed_over), 'line')} passed over" if log.passed_over else ""
    return many(len(log.results), "result") + passed


@pytest.mark.parametrize(("name", "said"), SAID, ids=[name for name, _ in SAID])
def test_a_file_is_read_as_the_page_says(name: str, said: str, tmp_path: Path) -> None:
    (path,) = DATA.glob(f"*/{name}")
    if said.startswith("refused: "):
        with pytest.raises(UsageError) as caught:
            found(path, tmp_path)
        assert said.removeprefix("refused: ") in str(caught.value)
    else:
        assert found(path, tmp_path) == said


def test_the_page_has_every_file() -> None:
    assert sorted(name for name, _ in SAID) == sorted(path.name for path in DATA.glob("*/*"))


def test_the_page_names_tests_that_are_there() -> None:
    tests = "\n".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {name}(" in tests, name
    for name in re.findall(r"`(tests/[\w/.]+)`", PAGE):
        assert (REPOSITORY / name).exists(), name
