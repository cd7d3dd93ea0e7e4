"""Tables that the docs show have the headings and the layout that the code prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from commbench.ab import answer as ab
from commbench.commands import compare
from commbench.output import cost_table, table
from commbench.output.grid import Column, TableStyle, grid
from commbench.tune import describe
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs/guide").glob("*.md"))]
# Of each command, by the name in `--columns` or the heading: whether its cells begin on the left.
COMMANDS = {
    name: {heading: one.left for one in columns for heading in (one.name, one.heading or one.name)}
    for name, columns in {
        "sweep": table.columns([], {}), "tune": describe.columns(), "compare": compare.table_columns(0.05),
        "model": cost_table.columns(), "ab": ab.columns(),
    }.items()
}  # fmt: skip


def headings(line: str) -> dict[str, bool] | None:
    """How the cells below a line of headings are aligned, None of any other line."""
    words = line.strip().lstrip("#").split()
    names = ["speedup" if word.startswith("vs_") else word for word in words]
    for known in COMMANDS.values():
        if len(words) > 2 and set(names) <= known.keys():
            return {word: known[name] for word, name in zip(words, names, strict=True)}
    return None


def pasted(page: Path) -> Iterator[tuple[dict[str, bool], list[str]]]:
    """Each table of a page: its headings, and its lines with them."""
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("    ") and (found := headings(line)):
            rows = [line[4:]]
            for row in lines[number + 1 :]:
                if not re.match(r"    +[^# ]", row):
                    break
                rows.append(row[4:])
            yield found, rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_of_the_docs_are_laid_out_by_the_code(page: Path) -> None:
    for found, lines in pasted(page):
        cells = [dict(zip(found, line.split(), strict=True)) for line in lines[1:]]
        columns: list[Column[dict[str, str]]] = [
            Column(name=name, left=left, text=lambda row, name=name: row[name])  # type: ignore[misc]
            for name, left in found.items()
        ]
        assert lines == grid(columns, cells, TableStyle(columns="all")).lines
        assert max(map(len, lines)) <= 100


def test_the_docs_show_tables_and_none_of_old_versions() -> None:
    shown = [found for page in PAGES for found, _ in pasted(page)]
    assert len(shown) >= 7
    old = re.compile(
        r"^ {4}#? *(size .* x_low +x_high|arm +launches .* what|collective +size +default +us)", re.MULTILINE
    )
    assert not [page.name for page in PAGES if old.search(page.read_text())]
