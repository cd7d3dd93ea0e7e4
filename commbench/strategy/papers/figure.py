"""PaperFigure: what a publication says, beside what formulas say it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from commbench.stats import Floats


class Band(NamedTuple):
    """Where 90 % of draws are, and their median."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, draws: Floats) -> Band:
        return cls(*(float(value) for value in np.percentile(draws, (5, 50, 95))))

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRow:
    """One number, in words, and what was published or measured by its authors."""

    what: str
    band: Band
    published: float | None = None

    @property
    def inside(self) -> bool | None:
        """Return whether the published number is in the band; None where there is none."""
        return None if self.published is None else self.band.holds(self.published)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperFigure:
    """Rows of one figure. ratio: of what over what, the unit of all its rows. says: what follows, in sentences;
    left_open: what the publication does not tell, and is drawn here. source: where it is published."""

    name: str
    title: str
    ratio: str
    source: str
    rows: tuple[PaperRow, ...]
    says: tuple[str, ...]
    left_open: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """`2 of 2 published numbers are in the predicted band`."""
        known = [row.inside for row in self.rows if row.inside is not None]
        if len({row.published for row in self.rows} - {None}) == 1:  # one number, under several assumptions
            return f"the published number is in the predicted band under {sum(known)} of {len(known)} assumptions"
        return f"{sum(known)} of {len(known)} published numbers are in the predicted band"

    def as_dict(self) -> dict[str, Any]:
        rows = [
            {"what": row.what, "published": row.published, "inside": row.inside, **row.band._asdict()}
            for row in self.rows
        ]
        return {
            "figure": self.name, "title": self.title, "ratio": self.ratio, "source": self.source, "rows": rows,
            "says": list(self.says), "left_open": list(self.left_open),
        }  # fmt: skip
