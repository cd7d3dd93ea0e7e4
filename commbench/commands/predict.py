"""`commbench predict`: numbers that papers published, beside what formulas of their systems say they should be."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from commbench.errors import UsageError
from commbench.output import grid
from commbench.output.answer.claims import Answer
from commbench.output.grid import Column, TableStyle, folded
from commbench.strategy import papers
from commbench.strategy.papers.figure import PaperFigure, PaperRow


def run(names: Sequence[str], gpus: str, format_: str) -> int:
    """Print figures and what follows from them; return 0. Raises `UsageError` for what there is not."""
    wanted = dict.fromkeys(names or papers.FIGURES)
    counts = _counts(gpus) if gpus else papers.GPUS
    figures = [papers.predict(name, counts) for name in wanted]
    found = Answer(sentences=[f"{figure.title}: {figure.verdict}" for figure in figures])
    if format_ == "json":
        lines = [json.dumps(figure.as_dict()) for figure in figures]
        sys.stdout.write("\n".join([*lines, json.dumps(found.as_dict())]) + "\n")
        return 0
    look = TableStyle(markdown=format_ == "markdown")
    for figure in figures:
        sys.stdout.write("\n".join(_lines(figure, look)) + "\n")
    sys.stdout.write("\n".join(found.lines()) + "\n")
    return 0


def _counts(text: str) -> list[int]:
    counts = text.split(",")
    for count in counts:
        if not count.strip().isdecimal() or len(count) > 9:
            raise UsageError(f"--gpus {text}: {count!r} is no number of GPUs",
                             hint="multiples of 8, from 8 to 4096: --gpus 8,64,512")  # fmt: skip
    return [int(count) for count in counts]


def _columns() -> list[Column[PaperRow]]:
    return [
        Column(name="what", text=lambda row: row.what, left=True),
        Column(name="predicted", text=lambda row: f"{row.band.middle:.2f}x"),
        Column(name="band", heading="[5-95%]", text=lambda row: f"[{row.band.low:.2f}-{row.band.high:.2f}]"),
        Column(name="published", text=lambda row: "" if row.published is None else f"{row.published:.2f}x"),
        Column(name="inside", text=lambda row: {True: "yes", False: "no", None: ""}[row.inside]),
    ]


def _lines(figure: PaperFigure, look: TableStyle) -> list[str]:
    laid = grid.grid(_columns(), figure.rows, look)
    head = [f"{figure.title}: {figure.ratio}", figure.source]
    says = [*figure.says, f"drawn, as it is not published: {'; '.join(figure.left_open)}"]
    lines = [line for text in head for line in folded(text)] + laid.framed(look)
    return [*lines, *(line for text in says for line in folded(text)), "#"]
