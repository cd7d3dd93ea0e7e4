"""Named: something that is not healthy, with its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from commbench.output.answer import words

FACTOR = "{}"  # stands for the ratio in what is said


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Somebody or something that is not as it should be. ratio: how many times slower, or less; None: no number."""

    kind: str  # rank, node, link, cpu, hardware, doctor, case, bound, drift
    name: str
    says: str  # what is wrong, behind the name; where there is a ratio, with FACTOR in it
    ratio: float | None = None
    low: float | None = None  # its 95 % interval
    high: float | None = None
    interval_of: str | None = None  # launches, messages, looks, repeats
    about: dict[str, Any] = field(default_factory=dict)  # ranks, nodes, direction
    evidence: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        """`node 7's link out is 2.90x slow [2.88-3.03]`."""
        if self.ratio is None:
            return f"{self.name} {self.says}"
        before, _, after = self.says.rpartition(FACTOR)
        factor = f"{self.ratio:.{words.decimals(self.low, self.high)}f}x"
        return f"{self.name} {before}{factor}{after}{words.interval(self.low, self.high)}"

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["says"], values["about"]
        return {**values, **self.about, "evidence": list(self.evidence), "sentence": self.sentence}
