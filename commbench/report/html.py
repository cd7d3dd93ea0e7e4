"""A page as one HTML file: style, scripts, charts and rows are inside it, and nothing of a run is markup or code."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from commbench.report.page import (
    Block,
    CommandLine,
    FactList,
    LegendEntry,
    PageChart,
    PageColumn,
    PageReport,
    PageSection,
    PageTable,
    Paragraph,
)

VEGA = "vega.js"  # made when the package is built: hatch_build.py
_AT_ONCE = 100  # rows of a table that are in the page as they are; the script adds the others
_FOLDED = "details"


def write(reports: Sequence[PageReport], title: str) -> str:
    """Return the file."""
    page = _Page()
    body = "".join(page.report(one, number) for number, one in enumerate(reports))
    library = vega()
    scripts = [asset("page.js")]
    if page.charts and library:
        scripts.insert(0, library)
    code = "".join(f"<script>{text}</script>\n" for text in scripts)
    # Nothing is fetched, whatever stands in the page; Vega compiles its expressions, which needs unsafe-eval.
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{asset('page.css')}</style></head>\n"
        f"<body><main>{_contents(reports)}{body}</main>\n"
        f"<footer>Made by commbench. Nothing in this page is fetched: it can be kept and sent as it is.</footer>\n"
        f"{code}</body></html>\n"
    )


def asset(name: str) -> str:
    """Return a file of this package."""
    return resources.files("commbench.report").joinpath("assets", name).read_text(encoding="utf-8")


def vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script; "" in a checkout that was never installed."""
    try:
        return asset(VEGA)
    except FileNotFoundError:
        return ""


def embedded(value: Any) -> str:
    """Return a value as JSON that may stand in a script element, whatever strings are in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(text: str) -> str:
    return html.escape(str(text), quote=True)


def _contents(reports: Sequence[PageReport]) -> str:
    """Return links to the reports of a page that has several."""
    if len(reports) < 2:
        return ""
    links = "".join(
        f'<li><a href="#r{number}"><b>{_text(one.kind)}</b> {_text(one.verdict or one.answer[0])}</a></li>'
        for number, one in enumerate(reports)
    )
    return f"<nav><h2>In this page</h2><ol>{links}</ol></nav>"


class _Page:
    """Writes reports, and counts what needs a name of its own."""

    def __init__(self) -> None:
        self.charts = 0
        self._tables = 0

    def report(self, one: PageReport, number: int) -> str:
        first, *more = one.answer
        head = f'<p class="kicker">{_text(one.kind)} <span>{_text(one.name)}</span></p>'
        head += f'<p class="verdict">{_text(one.verdict)}</p>' if one.verdict else ""
        head += f"<h1>{_text(_capital(first))}</h1>"
        head += f"<ul>{''.join(f'<li>{_text(text)}</li>' for text in more)}</ul>" if more else ""
        if one.next:
            head += f'<p class="next"><b>Next</b> {_text(one.next)}</p>'
        head += self._command(one.command, "") if one.command else ""
        head += f'<p class="about">{" · ".join(map(_text, one.about))}</p>' if one.about else ""
        sections = "".join(self._section(section, f"r{number}s{place}") for place, section in enumerate(one.sections))
        links = "".join(
            f'<a href="#r{number}s{place}">{_text(section.title)}</a>' for place, section in enumerate(one.sections)
        )
        answer = f'<header class="answer{f" {one.mood}" if one.mood else ""}">{head}</header>'
        parts = f'<nav class="parts">{links}</nav>'
        return f'<article id="r{number}">\n{answer}\n{parts}\n{sections}</article>\n'

    def _section(self, section: PageSection, anchor: str) -> str:
        blocks = "".join(map(self._block, section.blocks))
        if section.folded:
            summary = f"<summary><h2>{_text(section.title)}</h2></summary>"
            return f'<details id="{anchor}">{summary}{blocks}</details>\n'
        return f'<section id="{anchor}"><h2>{_text(section.title)}</h2>{blocks}</section>\n'

    def _block(self, block: Block) -> str:
        match block:
            case Paragraph():
                return f"<p{' class=small' if block.small else ''}>{_text(block.text)}</p>"
            case FactList():
                return f"<dl>{''.join(f'<dt>{_text(k)}</dt><dd>{_text(v)}</dd>' for k, v in block.items)}</dl>"
            case CommandLine():
                return self._command(block.text, block.label)
            case PageTable():
                return self._table(block)
            case PageChart():
                return self._chart(block)

    def _command(self, text: str, label: str) -> str:
        name = f"<figcaption>{_text(label)}</figcaption>" if label else ""
        return f'<figure class="command">{name}<pre><code>{_text(text)}</code></pre></figure>'

    def _chart(self, chart: PageChart) -> str:
        swatches = "".join(f"<li>{_swatch(one)}{_text(one.label)}</li>" for one in chart.legend)
        legend = f'<ul class="legend">{swatches}</ul>' if swatches else ""
        panels = ""
        for spec in chart.panels:
            self.charts += 1
            panels += f'<div class="panel" role="img" aria-label="{_text(chart.title)}"></div>'
            panels += f'<script type="application/json" class="spec">{embedded(spec)}</script>'
        subtitle = f'<p class="small">{_text(chart.subtitle)}</p>' if chart.subtitle else ""
        says = f'<p class="small says">{_text(chart.says)}</p>' if chart.says else ""
        several = " two" if len(chart.panels) > 1 else ""
        return (
            f'<figure class="chart"><figcaption><h3>{_text(_capital(chart.title))}</h3>{subtitle}</figcaption>{legend}'
            f'<div class="panels{several}">{panels}</div>{says}</figure>'
        )

    def _table(self, table: PageTable) -> str:
        if not table.rows:
            return ""
        heads = "".join(
            f'<th scope="col"{" class=n" if column.is_number else ""} title="{_text(column.help)}">'
            f"<button type=button>{_text(column.name)}</button></th>"
            for column in table.columns
        )
        shown = min(table.rows, _AT_ONCE)
        body = "".join(f"<tr>{''.join(_cell(column, row) for column in table.columns)}</tr>" for row in range(shown))
        data = embedded({"rows": table.rows, "name": table.name, "columns": [_packed(one) for one in table.columns]})
        kind = "" if len(table.columns) > 4 else " class=narrow"
        grid = f"<table{kind}><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        rows = f'<script type="application/json" class="rows">{data}</script>'
        return f'<div class="table"><div class="scroll">{grid}</div>{rows}</div>'


def _capital(text: str) -> str:
    """Return a sentence with a capital at its beginning, unless it begins with a name."""
    first = text.partition(" ")[0].rstrip(":,")
    return text[:1].upper() + text[1:] if first.isalpha() else text


def _swatch(one: LegendEntry) -> str:
    if one.area:
        return f'<i class="area" style="background:{_text(one.colour)}"></i>'
    dash = f' stroke-dasharray="{" ".join(map(str, one.dash))}"' if one.dash else ""
    line = f'<line x1="1" y1="5" x2="25" y2="5" stroke-width="3" stroke="{_text(one.colour)}"{dash}/>'
    return f'<svg width="26" height="10" aria-hidden="true">{line}</svg>'


def _cell(column: PageColumn, row: int) -> str:
    value = column.values[row]
    return f"<td{' class=n' if column.is_number else ''}>{_text('' if value is None else shown(value))}</td>"


def shown(value: str | float | int) -> str:
    """Return a value as tables have it: numbers with the digits that they have, thousands apart."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and (abs(value) >= 1e15 or 0 < abs(value) < 1e-4):
        return f"{value:.4g}"
    return f"{value:,}".replace(",", "\u202f").removesuffix(".0")


def _packed(column: PageColumn) -> dict[str, Any]:
    """Return a column for the script: numbers as they are; texts as places in a list of those that there are."""
    if column.is_number:
        return {"numbers": list(column.values)}
    texts = {str(value): None for value in column.values if value is not None}
    place = {text: number for number, text in enumerate(texts)}
    packed: dict[str, Any] = {
        "texts": list(texts),
        "places": [-1 if value is None else place[str(value)] for value in column.values],
    }
    if column.keys is not None:
        packed["keys"] = [column.keys.get(text) for text in texts]
    return packed
