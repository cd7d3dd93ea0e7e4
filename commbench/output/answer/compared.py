"""The answer of `commbench compare`: what became slower or faster from the first run to the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from commbench import stats
from commbench.analysis.compare import CaseComparison
from commbench.output.answer import words
from commbench.output.answer.claims import Answer, FasterRange, Proof, merged
from commbench.records import network_note
from commbench.stats import LAUNCHES_FOR_INTERVAL, Verdict

FIRST, SECOND = "the first run", "the second run"
_DIRECTIONS = {FIRST: "slower", SECOND: "faster"}  # of the second run, by which one is faster
_MOST_PARTS = 3  # of a picture's title


def answer(comparisons: Sequence[CaseComparison], threshold: float, about: Mapping[str, Any]) -> Answer:
    """Return what differs for certain. threshold: of a regression; about: run.json of the second run, {} of a file."""
    worse = [item for item in comparisons if item.regressed(threshold)]
    found = _ranges(comparisons)
    sentences = [
        f"{len(worse)} of {words.count(len(comparisons), 'case')} regressed by more than {100 * threshold:g} %"
    ]
    sentences += [_sentence(one) for one in sorted(found, key=lambda one: one.faster == SECOND)]
    if not found:
        sentences = [_nothing(comparisons)]
    notes = dict.fromkeys(filter(None, (network_note(item.fabric) for item in comparisons)))
    step, command = _next(comparisons, worse, found, about)
    return Answer(sentences=[*sentences, *notes], claims=found, step=step, command=command)


def title(comparisons: Sequence[CaseComparison]) -> str:
    """Return what differs as the title of a picture: `Second run: direct slower from 1 KiB to 4 KiB (1.20x to 1.24x)`.

    Of many differences it says how many, and how large.
    """
    found = _ranges(comparisons)
    if not found:
        return words.begun(_nothing(comparisons))
    if len(found) <= _MOST_PARTS:
        parts = [f"{one.where.rpartition(': ')[2]} {_DIRECTIONS[one.faster]} {words.sizes(one.sizes)} ({one.factors})"
                 for one in found]  # fmt: skip
        return f"Second run: {'; '.join(parts)}"
    parts = []
    for faster in (FIRST, SECOND):
        if proofs := [proof for one in found if one.faster == faster for proof in one.proofs]:
            factors = words.ratios([proof.factor for proof in proofs], None, None)
            parts.append(f"{_DIRECTIONS[faster]} in {len(proofs)} ({factors})")
    return f"Second run: of {words.count(len(comparisons), 'case')} {', '.join(parts)}"


def _ranges(comparisons: Sequence[CaseComparison]) -> list[FasterRange]:
    """Return what is proven of each label in each set-up, sizes ascending."""
    curves: dict[str, list[CaseComparison]] = {}
    for item in comparisons:
        curves.setdefault(f"{item.set_up}: {item.label}", []).append(item)
    found = []
    for where, members in curves.items():
        ordered = sorted(members, key=lambda item: item.size_bytes)
        found += merged([(item.size_bytes, _range(where, item)) for item in ordered])
    return found


def _range(where: str, item: CaseComparison) -> FasterRange | None:
    """Return which run is faster at one size; None where that is not proven."""
    if item.verdict not in (Verdict.FASTER, Verdict.SLOWER):
        return None
    second = item.verdict is Verdict.FASTER
    factor, low, high = item.ratio, item.low, item.high
    if not second:
        factor, low, high = 1 / item.ratio, 1 / item.high if item.high else None, 1 / item.low if item.low else None
    times = (item.after_us, item.before_us) if second else (item.before_us, item.after_us)
    proof = Proof(
        size_bytes=item.size_bytes, time_us=times[0], than_us=times[1], factor=factor, low=low, high=high
    )  # fmt: skip
    names = (SECOND, FIRST) if second else (FIRST, SECOND)
    return FasterRange(
        where=where, faster=names[0], than=names[1], fastest=False, is_default=not second, among=1, proofs=(proof,)
    )  # fmt: skip


def _sentence(one: FasterRange) -> str:
    """`.. direct: the second run is slower from 1 KiB to 4 KiB, takes 1.20x to 1.24x as long [1.15-1.29]`."""
    factors, _, ends = one.factors.partition(" [")
    said = f"is faster {words.sizes(one.sizes)}, {factors} as fast"
    if one.faster == FIRST:
        said = f"is slower {words.sizes(one.sizes)}, takes {factors} as long"
    return f"{one.where}: {SECOND} {said}{' [' + ends if ends else ''}"


def _nothing(comparisons: Sequence[CaseComparison]) -> str:
    """Return why nothing is proven."""
    unknown = [item for item in comparisons if item.p is None]
    if unknown:
        few = min(min(item.launches) for item in unknown)
        if few == 0:
            return "nothing is proven: one of both has one number a size and no samples, so no interval"
        return f"nothing is proven: {stats.missing_launches(few) or 'samples are missing'}"
    low = min(item.low or 0.0 for item in comparisons)
    high = max(item.high or 0.0 for item in comparisons)
    cases = words.count(len(comparisons), "case")
    if any(stats.too_noisy(item.low or 0.0, item.high or 0.0) for item in comparisons):
        return f"no difference is proven in {cases}: {words.TOO_NOISY}"
    return f"no difference is proven in {cases}: ratios are between {words.ends(low, high)}"


def _next(
    comparisons: Sequence[CaseComparison],
    worse: Sequence[CaseComparison],
    found: Sequence[FasterRange],
    about: Mapping[str, Any],
) -> tuple[str, str]:
    if worse:
        return "see what slows this machine, then measure the second run again", "commbench doctor"
    few = min(min(item.launches) for item in comparisons)
    if not found and 0 < few < LAUNCHES_FOR_INTERVAL:
        more = f"launches={LAUNCHES_FOR_INTERVAL}"
        return f"measure both runs with {more}", words.command(about, "sweep", more)
    if not found and few == 0:
        return "compare two run folders that have their samples", ""
    return "nothing to repair", ""
