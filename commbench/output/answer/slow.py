"""The answer of `commbench stragglers`: who is slow, for certain, and who may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from commbench.analysis.stragglers.examine import Examined
from commbench.analysis.stragglers.search import Straggler
from commbench.output.answer import words
from commbench.output.answer.claims import Answer
from commbench.records import network_note
from commbench.stats import LAUNCHES_FOR_INTERVAL


def answer(
    parts: Sequence[Examined], named: Sequence[tuple[Examined, Straggler]], effect: float, about: Mapping[str, Any]
) -> Answer:
    """Return who is named. effect: how many times slower counts as slow; about: run.json of the run."""
    notes = list(dict.fromkeys(filter(None, (network_note(part.fabric) for part in parts))))
    sentences = [
        f"{one.name} takes {words.ratio(one.ratio, one.low, one.high)} as long as its like, in "
        f"{one.launches_slow} of {words.count(one.launches, 'launch')}"
        for _, one in named
    ]
    doubtful = [part.unclear for part in parts if part.unclear is not None]
    if sentences:
        return Answer(
            sentences=[*sentences, *notes], step="look at what is slow, on its host", command="commbench doctor"
        )
    more = f"launches={LAUNCHES_FOR_INTERVAL}"
    if doubtful:
        worst = max(doubtful, key=lambda one: one.ratio)
        sentences = [
            f"nothing is proven: {worst.name} took {worst.ratio:.2f}x as long as its like, and "
            f"{words.count(worst.launches, 'launch')} cannot tell chance from a fault"
        ]
        return Answer(
            sentences=[*sentences, *notes], step="measure more launches", command=words.command(about, "sweep", more)
        )
    suspects, few = sum(part.tests for part in parts), min(part.launches for part in parts)
    sentences = [f"nothing stands out: none of {suspects} ranks and links takes {effect:g}x as long as its like"]
    if few < 2:
        sentences.append("one launch may have missed what comes and goes")
        return Answer(
            sentences=[*sentences, *notes], step="measure more launches", command=words.command(about, "sweep", more)
        )
    if all(part.row is None for part in parts) and parts[0].to_pairs:
        sentences.append("links were not measured one by one")
        step = "nothing to repair here; measure the links, too"
        return Answer(sentences=[*sentences, *notes], step=step, command=parts[0].to_pairs)
    return Answer(sentences=[*sentences, *notes], step="nothing to repair")
