"""Rows as aligned columns that fit a terminal, or as a table of Markdown.

A column that is empty is left out; one that says the same in every row is said once, above the rows; what does not fit
is left out and named.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from commbench.errors import UsageError

R = TypeVar("R")
WIDEST = 100
_NARROWEST = 60
_EMPTY = "-"
_DIGITS = 4  # significant ones
_MOST_DIGITS = 9  # behind the point


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[R]):
    name: str  # as `--columns` has it
    text: Callable[[R], str]
    heading: str = ""  # where it is not the name
    left: bool = False  # how cells are aligned
    goes: int = 0  # the first to go where there is no room has the highest; 0 stays
    once: bool = False  # said once, above the rows, where all say the same
    asked: bool = False  # shown only where it is asked for


def line_width() -> int:
    """Return how many characters a line has: those of the terminal (COLUMNS), 100 at the most."""
    return max(_NARROWEST, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))


class TableStyle(NamedTuple):
    """How a table is to look. columns: as `--columns`: "", "all", or names with commas between."""

    columns: str = ""
    markdown: bool = False

    @property
    def most(self) -> int:
        if self.columns:
            return 1_000_000
        return line_width()


AS_FITS = TableStyle()


class Grid(NamedTuple):
    """notes: what rows have in common, and what was left out. lines: the headings, then the rows."""

    notes: list[str]
    lines: list[str]

    def framed(self, look: TableStyle) -> list[str]:
        """Return the lines; in Markdown a table stands between empty lines."""
        return ["", *self.lines, ""] if look.markdown else self.lines


def grid(columns: Sequence[Column[R]], rows: Sequence[R], look: TableStyle) -> Grid:
    """Lay out rows. Raises `UsageError` for a column that there is not."""
    cells = {column.name: [column.text(row) or _EMPTY for row in rows] for column in columns}
    kept, notes = _kept(columns, cells, look.columns)
    if look.markdown:
        return Grid(notes, _markdown(kept, cells))
    widths = {column.name: max(map(len, [_heading(column), *cells[column.name]])) for column in kept}
    left_out = []

    def width(gap: int) -> int:
        return sum(widths[one.name] + gap for one in kept) - gap + 2 * kept[0].left

    while width(2) > look.most and any(one.goes for one in kept):
        last = max(kept, key=lambda one: one.goes)
        kept.remove(last)
        left_out.append(_heading(last))
    if left_out:
        notes.append(f"no room for {', '.join(left_out)}: --columns all")
    texts = [[_heading(one) for one in kept], *([cells[one.name][row] for one in kept] for row in range(len(rows)))]
    gap = " " * (2 if width(2) <= look.most else 1)
    lines = [
        gap.join(
            cell.ljust(widths[one.name]) if one.left else cell.rjust(widths[one.name])
            for cell, one in zip(line, kept, strict=True)
        ).rstrip()
        for line in texts
    ]
    # The headings are a comment, whose mark needs the place of a blank.
    if lines[0].startswith(" "):
        lines[0] = f"#{lines[0][1:]}"
    else:
        lines = [f"# {lines[0]}", *(f"  {line}" for line in lines[1:])]
    return Grid(notes, lines)


def _kept(columns: Sequence[Column[R]], cells: dict[str, list[str]], asked: str) -> tuple[list[Column[R]], list[str]]:
    """Return the columns to show, and what those that are not say of all rows."""
    if asked:
        return _asked(columns, asked), []
    kept, said_once = [], []
    for column in columns:
        said = set(cells[column.name])
        if column.asked or said == {_EMPTY}:
            continue
        if column.once and len(said) == 1 and len(cells[column.name]) > 1:
            said_once.append(f"{_heading(column)}: {said.pop()}")
        else:
            kept.append(column)
    return kept, ["; ".join(said_once)] if said_once else []


def _asked(columns: Sequence[Column[R]], asked: str) -> list[Column[R]]:
    if "all" in asked.split(","):
        return list(columns)
    by_name = {column.name: column for column in columns}
    return [by_name[name] for name in check(asked, list(by_name))]


def check(asked: str, names: Sequence[str]) -> list[str]:
    """Return the names in what `--columns` asks for, each once. Raises `UsageError` for one that there is not."""
    wanted = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in wanted:
        if name not in (*names, "all"):
            raise UsageError(f"--columns {asked}: there is no column {name!r}", hint=f"all, or {', '.join(names)}")
    return wanted


def _heading(column: Column[R]) -> str:
    return column.heading or column.name


def _markdown(columns: Sequence[Column[R]], cells: dict[str, list[str]]) -> list[str]:
    count = len(cells[columns[0].name]) if columns else 0
    lines = ["| " + " | ".join(_escaped(_heading(one)) for one in columns) + " |"]
    lines.append("|" + "|".join("---" if one.left else "---:" for one in columns) + "|")
    for row in range(count):
        lines.append("| " + " | ".join(_escaped(cells[one.name][row]) for one in columns) + " |")
    return lines


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def folded(text: str, first: str = "# ", more: str = "#   ") -> list[str]:
    """Return a comment as lines that fit, broken behind `;`, `,` and `:`, and inside a phrase that fits no line.

    first, more: what lines begin with.
    """
    lines, line, widest = [], first, line_width()
    for phrase in re.split(r"(?<=[;,:]) ", text):
        for part in [phrase] if len(more) + len(phrase) <= widest else phrase.split(" "):
            if len(line) + len(part) > widest and line not in (first, more):
                lines.append(line.rstrip())
                line = more
            line += f"{part} "
    return [*lines, line.rstrip()]


def refolded(lines: Sequence[str]) -> list[str]:
    """Return lines of text, of which comments that are too long are folded."""
    found: list[str] = []
    for line in lines:
        found += folded(line[2:]) if line.startswith("# ") and len(line) > line_width() else [line]
    return found


def number(value: float | None) -> str:
    """Return four significant digits, never an exponent; all digits of what is larger."""
    return _EMPTY if value is None else _fixed(value, value)


def interval(low: float | None, high: float | None, beside: float | None = None) -> str:
    """`[19.81-20.54]`, as exact as the value that it belongs to."""
    if low is None or high is None:
        return _EMPTY
    of = high if beside is None else beside
    return f"[{_fixed(low, of)}-{_fixed(high, of)}]"


def _fixed(value: float, like: float) -> str:
    """Return `value` with as many digits behind the point as four significant ones of `like` take."""
    if not math.isfinite(value) or not math.isfinite(like):
        return str(value)
    size = math.floor(math.log10(abs(like))) if like else 0
    digits = min(_MOST_DIGITS, max(0, _DIGITS - 1 - size)) if like else 0
    return f"{value:.{digits}f}"
