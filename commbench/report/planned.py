"""The page of a plan: what `commbench plan --format json` printed, in a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from commbench.errors import CorruptFile
from commbench.report import charts
from commbench.report.page import (
    CommandLine,
    LegendEntry,
    PageChart,
    PageColumn,
    PageReport,
    PageSection,
    PageTable,
    Paragraph,
)
from commbench.serialise import check_types, parse_json

_LINE: dict[str, Any] = {"rank": int, "step_ms": float, "parts_ms": dict[str, float]}
_MORE: dict[str, Any] = {"memory_parts_gib": dict[str, float], "memory_gib": float, "needed_gib": float}
_ANSWER: dict[str, Any] = {"sentence": str, "next": str, "command": str}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#7A5195", "#8C6D31", "#777777")
_SHOWN = 10
_SIZES = ("tp", "cp", "pp", "ep", "etp", "dp", "edp", "vpp", "micro_batch")
_COLUMNS = (
    "rank",
    "step_ms",
    "step_ms_low",
    "step_ms_high",
    "tokens_per_s_per_gpu",
    "mfu",
    "needed_gib",
    "margin_gib",
    "p_best",
    "binds",
    *_SIZES,
    "schedule",
    "exchange",
)


def is_one(path: Path) -> bool:
    """Return whether a file is what `commbench plan --format json` prints."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        first = file.readline(1 << 20)
    return first.startswith(b"{") and b'"step_ms"' in first and b'"parts_ms"' in first


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the strategies and the answer of a file. Raises `CorruptFile`."""
    ranked, answer = [], dict[str, Any]()
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = parse_json(text)
            check_types(line, {})
            if "answer" in line:
                answer = dict(line["answer"])
                check_types(answer, {}, _ANSWER)
            else:
                check_types(line, _LINE, _MORE)
                ranked.append(line)
        except (ValueError, TypeError) as error:
            raise CorruptFile(
                f"{path}:{number}: {error}", hint="commbench plan .. --format json > plan.json"
            ) from error
    return ranked, answer


def report(path: Path) -> PageReport:
    """Return the page of a plan. Raises `CorruptFile`."""
    ranked, answer = read(path)
    first = str(answer.get("sentence") or f"{_name(ranked[0])}: {ranked[0]['step_ms']:.4g} ms a step")
    made = PageReport(
        kind="plan",
        name=path.name,
        answer=_sentences(first),
        next=str(answer.get("next") or ""),
        command=str(answer.get("command") or ""),
        about=["predicted"],
    )
    shown = ranked[:_SHOWN]
    made.sections.append(
        PageSection(
            title="The best strategies",
            blocks=[
                _bars(shown, "parts_ms", "What a step takes", "ms of a step"),
                *(
                    [_bars(shown, "memory_parts_gib", "Memory of a GPU", "GiB of a GPU")]
                    if shown[0].get("memory_parts_gib")
                    else []
                ),
            ],
        )
    )
    columns = [
        PageColumn(name=name, values=[_cell(line.get(name)) for line in ranked])
        for name in _COLUMNS
        if any(line.get(name) is not None for line in ranked)
    ]
    made.sections.append(PageSection(title="All strategies", blocks=[PageTable(columns=columns, name="strategies")]))
    losers = [one for one in answer.get("losers") or [] if isinstance(one, dict)]
    if losers:
        made.sections.append(
            PageSection(
                title="Why others lose",
                folded=True,
                blocks=[
                    PageTable(
                        columns=[
                            PageColumn(name="strategy", values=[str(one.get("strategy", "")) for one in losers]),
                            PageColumn(name="over the best", values=[_cell(one.get("over")) for one in losers]),
                            PageColumn(name="reason", values=[str(one.get("reason", "")) for one in losers]),
                        ],
                        name="strategies",
                    )
                ],
            )
        )
    emitted = answer.get("emitted")
    if isinstance(emitted, dict):
        made.sections += [
            PageSection(title=f"For {name}", blocks=[CommandLine(text=str(text))], folded=True)
            for name, text in emitted.items()
        ]
    commands = [str(one) for one in answer.get("commands") or []]
    if commands:
        made.sections.append(PageSection(title="Try them", blocks=[CommandLine(text=text) for text in commands]))
    made.sections.append(
        PageSection(
            title="How to read it",
            folded=True,
            blocks=[
                Paragraph(
                    text="Times and memory are predicted, the middle of all draws; an interval has 95 % of the draws. "
                    "p_best is the share of draws in which a strategy is the fastest. docs/reference/planner.md has "
                    "the formulas."
                )
            ],
        )
    )
    return made


def _sentences(text: str) -> list[str]:
    """Return an answer in pieces: which is best and what its step takes, the rest of it, and what limits it."""
    first, *limits = re.split(r"; (?=it is the fastest|what you run now)", text)
    best, found, rest = first.partition(", ")
    return [best, *([rest] if found else []), *limits]


def _name(line: dict[str, Any]) -> str:
    sizes = [f"{name}{line[name]}" for name in _SIZES[:6] if isinstance(line.get(name), int) and line[name] > 1]
    return " ".join([*sizes, str(line.get("schedule", ""))]).strip()


def _bars(lines: list[dict[str, Any]], key: str, title: str, axis: str) -> PageChart:
    parts = list(dict.fromkeys(name for line in lines for name, value in (line.get(key) or {}).items() if value > 0))
    legend = [
        LegendEntry(label=name, colour=_COLOURS[number % len(_COLOURS)], area=True) for number, name in enumerate(parts)
    ]
    bars = [f"{line['rank']}  {_name(line)}" for line in lines]
    values = [
        {"bar": bar, "series": name, "x": line[key][name], "text": f"{line[key][name]:.4g}"}
        for bar, line in zip(bars, lines, strict=True)
        for name in parts
        if (line.get(key) or {}).get(name)
    ]
    return PageChart(title=title, panels=[charts.bars(values, legend, axis, order=bars)], legend=legend)


def _cell(value: Any) -> str | float | int | None:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value if value is None or isinstance(value, int | str) else json.dumps(value)
