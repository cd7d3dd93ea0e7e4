"""A page as Markdown, for an issue or a chat: the answer, tables, commands; of charts what they say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from commbench.report.html import shown
from commbench.report.page import (
    Block,
    CommandLine,
    FactList,
    PageChart,
    PageReport,
    PageTable,
    Paragraph,
)

_MOST_ROWS = 200
_SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")  # inside a word _ is a letter


def write(reports: Sequence[PageReport], title: str) -> str:
    """Return the text. Nothing of a run is markup: what would be is escaped."""
    lines: list[str] = [f"# {plain(title)}", ""] if len(reports) > 1 else []
    for one in reports:
        head = f"{one.verdict}: {one.answer[0]}" if one.verdict else one.answer[0]
        lines += [f"{'##' if len(reports) > 1 else '#'} {plain(head[:1].upper() + head[1:])}", ""]
        lines += [f"- {plain(text)}" for text in one.answer[1:]]
        lines += [f"- next: {plain(one.next)}"] if one.next else []
        lines += [""]
        lines += _fenced(one.command) if one.command else []
        lines += [f"{plain(one.kind)} {plain(one.name)}. {plain(' | '.join(one.about))}", ""]
        for section in one.sections:
            blocks = [line for block in section.blocks for line in _block(block)]
            lines += [f"### {plain(section.title)}", "", *blocks]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _fenced(text: str) -> list[str]:
    fence = "`" * max(3, 1 + max((len(found) for found in re.findall("`+", text)), default=0))
    return [fence, *text.splitlines(), fence, ""]


def _block(block: Block) -> list[str]:
    match block:
        case Paragraph():
            return [plain(block.text), ""]
        case FactList():
            return [*(f"- {plain(name)}: {plain(value)}" for name, value in block.items), ""]
        case CommandLine():
            return [*([f"{plain(block.label)}:", ""] if block.label else []), *_fenced(block.text)]
        case PageChart():
            texts = filter(None, [f"**{plain(block.title)}**", plain(block.subtitle), plain(block.says)])
            return ["  \n".join(texts), ""]
        case PageTable():
            return _table(block)


def _table(table: PageTable) -> list[str]:
    count = min(table.rows, _MOST_ROWS)
    lines = [
        f"| {' | '.join(plain(one.name) for one in table.columns)} |",
        f"|{'|'.join('--:' if one.is_number else '---' for one in table.columns)}|",
    ]
    for row in range(count):
        values = (one.values[row] for one in table.columns)
        lines.append(f"| {' | '.join('' if value is None else plain(shown(value)) for value in values)} |")
    more = [f"{table.rows - count} more {plain(table.name)} are in the page of HTML."] if count < table.rows else []
    return [*lines, "", *more, ""]
