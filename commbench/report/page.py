"""What a page is made of, before it is HTML or Markdown: sections of text, facts, tables, charts and commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Spec = dict[str, Any]  # of Vega-Lite


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """A paragraph."""

    text: str
    small: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FactList:
    """Names with values, in two columns."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """Something to type."""

    text: str
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageColumn:
    """A column of a table. values: text, numbers or None; keys: what texts are sorted by, where not by themselves."""

    name: str
    values: Sequence[str | float | int | None]
    help: str = ""
    keys: Mapping[str, float] | None = None

    @property
    def is_number(self) -> bool:
        return any(value is not None for value in self.values) and not any(isinstance(v, str) for v in self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTable:
    """A table whose columns sort. name: of what it lists, in the plural."""

    columns: Sequence[PageColumn]
    name: str = "rows"

    @property
    def rows(self) -> int:
        return len(self.columns[0].values) if self.columns else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendEntry:
    """A series of a chart: its name, its colour, the dashes of its line."""

    label: str
    colour: str
    dash: Sequence[int] = ()
    area: bool = False  # of bars and cells: a square, no line


@dataclass(frozen=True, slots=True, kw_only=True)
class PageChart:
    """Panels that share a title and a legend. title: what they show; says: how to read them."""

    title: str
    panels: Sequence[Spec]
    legend: Sequence[LegendEntry] = ()
    subtitle: str = ""
    says: str = ""


Block = Paragraph | FactList | CommandLine | PageTable | PageChart


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSection:
    """A part of a page. folded: closed until somebody opens it."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(slots=True, kw_only=True)
class PageReport:
    """What is said of one run, or of several that are shown together.

    kind: sweep, check, tuning, training, A/B, plan, trace. answer: sentences, the first of which is the headline.
    mood: good, bad or "" of a verdict.
    """

    kind: str
    name: str
    answer: Sequence[str]
    next: str = ""
    command: str = ""
    verdict: str = ""
    mood: str = ""
    about: Sequence[str] = ()  # machine, date, version
    sections: list[PageSection] = field(default_factory=list)


def rounded(value: float | None) -> float | None:
    """Return a number of a table: four digits."""
    return None if value is None else float(f"{value:.4g}")
