"""FasterRange: one thing is faster than another, at these sizes. Answer: claims in words, and what to do next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from commbench.output.answer import words
from commbench.output.grid import folded
from commbench.stats import LAUNCHES_FOR_INTERVAL
from commbench.units import format_size

# History of the object that `--format json` ends with:
# 1  first version
FORMAT_VERSION = 1
_MOST_PARTS = 3  # of a picture's title
_MOST_LINES = 8  # of sentences in a table; JSON has all


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One size of a claim. factor: time of the other over this one's; low, high: its 95 % interval."""

    size_bytes: int
    time_us: float
    than_us: float | None  # None where the other's time is not at hand
    factor: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterRange:
    """Says that something is proven faster than something else over a range of sizes without gaps."""

    where: str  # the set-up in words
    faster: str  # the algorithm with its parameters, or the setting
    than: str
    fastest: bool  # proven faster than everything beside it, not only than `than`
    is_default: bool  # whether it is what happens where nothing is chosen
    among: int  # things compared with the default: of several the best looks better than it is
    proofs: tuple[Proof, ...]  # sizes ascending

    @property
    def low(self) -> float | None:
        """Return the lower end of an interval that holds the intervals at all sizes."""
        ends = [proof.low for proof in self.proofs]
        return None if None in ends else min(end for end in ends if end is not None)

    @property
    def high(self) -> float | None:
        ends = [proof.high for proof in self.proofs]
        return None if None in ends else max(end for end in ends if end is not None)

    @property
    def sizes(self) -> list[int]:
        return [proof.size_bytes for proof in self.proofs]

    @property
    def factors(self) -> str:
        """`1.21x to 1.58x [1.15-1.66]`."""
        return words.ratios([proof.factor for proof in self.proofs], self.low, self.high)

    def __str__(self) -> str:
        """`bruck is fastest at 1 KiB (20.1 us): 1.98x as fast as direct [1.90-2.05]`."""
        factors, _, ends = self.factors.partition(" [")
        times = [proof.time_us for proof in self.proofs]
        what = "is fastest" if self.fastest else f"is faster than {self.than}"
        as_fast = f"{factors} as fast as {self.than}" if self.fastest else factors
        return (
            f"{self.faster} {what} {words.sizes(self.sizes)} ({words.times(min(times), max(times))}): {as_fast}"
            f"{' [' + ends if ends else ''}"
        )

    def as_dict(self) -> dict[str, Any]:
        factors = [proof.factor for proof in self.proofs]
        return {
            "where": self.where, "algorithm": self.faster, "than": self.than, "fastest": self.fastest,
            "is_default": self.is_default, "min_bytes": min(self.sizes), "max_bytes": max(self.sizes),
            "factor_min": min(factors), "factor_max": max(factors), "low": self.low, "high": self.high,
            "sizes": [asdict(proof) for proof in self.proofs],
        }  # fmt: skip


def merged(found: Sequence[tuple[int, FasterRange | None]]) -> list[FasterRange]:
    """Return claims at single sizes, ascending, as claims over ranges: neighbours of the same winner are one."""
    ranges: list[FasterRange] = []
    for _, group in itertools.groupby(found, key=lambda item: _winner(item[1])):
        members = [claim for _, claim in group if claim is not None]
        if not members:
            continue
        names = list(dict.fromkeys(claim.than for claim in members))
        first = members[0]
        ranges.append(
            FasterRange(
                where=first.where,
                faster=first.faster,
                than=names[0] if len(names) == 1 else "the next best",
                fastest=first.fastest,
                is_default=first.is_default,
                among=max(claim.among for claim in members),
                proofs=tuple(proof for claim in members for proof in claim.proofs),
            )
        )
    return ranges


def _winner(claim: FasterRange | None) -> tuple[Any, ...] | None:
    return None if claim is None else (claim.faster, claim.fastest, claim.is_default)


def title(claims: Sequence[FasterRange], launches: int) -> str:
    """Return the claims as the title of a picture: `1 KiB to 32 KiB: bruck 1.20-1.60x direct; 1 MiB: direct ..`.

    claims: of one set-up. launches: the fewest that measured both of what is compared.
    """
    if not claims:
        few = f": {words.count(launches, 'launch')}, {LAUNCHES_FOR_INTERVAL} are needed"
        return "nothing is proven faster" + (few if launches < LAUNCHES_FOR_INTERVAL else "")
    parts = []
    for claim in sorted(claims, key=lambda claim: claim.sizes):
        factors = [f"{end:.2f}" for end in (min(p.factor for p in claim.proofs), max(p.factor for p in claim.proofs))]
        first, last = format_size(min(claim.sizes)), format_size(max(claim.sizes))
        where = first if first == last else f"{first} to {last}"
        parts.append(f"{where}: {claim.faster} {'-'.join(dict.fromkeys(factors))}x {claim.than}")
    return "; ".join(parts[:_MOST_PARTS]) + ("; .." if len(parts) > _MOST_PARTS else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found. sentences: one for each set-up, then what limits them. step, command: what to do next."""

    sentences: Sequence[str]
    claims: Sequence[FasterRange] = ()
    step: str = ""  # in words
    command: str = ""  # to paste; "" where there is nothing to type
    more: dict[str, Any] = field(default_factory=dict)  # facts of one command's own

    def __str__(self) -> str:
        return "; ".join(self.sentences)

    def but(self, limits: Sequence[str]) -> Answer:
        """Return the answer with more that limits it: that a run is partial, say."""
        return replace(self, sentences=[*self.sentences, *limits])

    def lines(self, prefix: str = "# ") -> list[str]:
        """Return the last lines of a table: the answer, a line for each sentence, and the next step."""
        shown = list(self.sentences[:_MOST_LINES])
        if left := len(self.sentences) - len(shown):
            shown.append(f"and {words.count(left, 'sentence')} more: --format json has all")
        lines = []
        for number, text in enumerate(shown):
            lines += folded(text, prefix + ("        " if number else "answer: "), f"{prefix}          ")
        return [*lines, *([f"{prefix}next: {self.next}"] if self.next else [])]

    @property
    def next(self) -> str:
        """`confirm it in fresh launches: commbench tune ..`."""
        return ": ".join(filter(None, [self.step, self.command]))

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `--format json` ends with."""
        return {
            "answer": {
                "sentence": str(self), "claims": [claim.as_dict() for claim in self.claims], "next": self.step,
                "command": self.command, **self.more,
            },
            "format": FORMAT_VERSION,
        }  # fmt: skip


def tell(answer: Answer, note: Callable[[str], None]) -> None:
    """Say the answer where stdout is for programs."""
    for line in answer.lines(""):
        note(line)
