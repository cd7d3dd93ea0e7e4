"""The answer of a sweep: what is faster where, for certain, and what stood in the way of saying more."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from commbench import payloads, stats
from commbench.analysis.ratios import Speedup
from commbench.emulated import ROUTINGS
from commbench.output.answer import next_step, numa, words, yardstick
from commbench.output.answer.claims import Answer, FasterRange, Proof, merged, title
from commbench.output.answer.preemption import preemption
from commbench.output.describe import describe_emulated, describe_layout
from commbench.records import Fabric, Row, Status, network_note
from commbench.stats import Verdict

_EMULATED = ("nodes", "link", "message_overhead", "spines", "routing", "intra_link", "slow_link", "spine_rate")
_MOST_LETTERS = 160  # of somebody else's reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One case with numbers beside its baseline."""

    name: str  # of what was compared: the algorithm with its parameters, or the setting
    size_bytes: int
    time_us: float
    ratio: Speedup


@dataclass(slots=True, kw_only=True)
class _Setup:
    """Cases that were compared with each other, at several sizes."""

    where: str
    axis: str  # what was varied
    first: Row
    by_size: dict[int, list[Compared]] = field(default_factory=dict)

    @property
    def claims(self) -> list[FasterRange]:
        return claims(self.where, itertools.chain(*self.by_size.values()))

    @property
    def challengers(self) -> list[Compared]:
        return [item for items in self.by_size.values() for item in items if item.ratio.verdict is not None]


def claims(where: str, points: Iterable[Compared]) -> list[FasterRange]:
    """Return what is proven of one set-up: at most one claim at each size, neighbours merged."""
    by_size: dict[int, list[Compared]] = {}
    for point in points:
        by_size.setdefault(point.size_bytes, []).append(point)
    return merged([(size, _claim(where, by_size[size])) for size in sorted(by_size)])


def _claim(where: str, points: Sequence[Compared]) -> FasterRange | None:
    """Return who is proven faster at one size, None where nobody is."""
    baselines = [point for point in points if point.ratio.verdict is None]
    others = [point for point in points if point.ratio.verdict is not None]
    faster = [point for point in others if point.ratio.verdict is Verdict.FASTER]
    if faster:
        best = max(faster, key=lambda point: point.ratio.speedup or 0.0)
        low = best.ratio.speedup_low or 0.0
        rest = [point.ratio for point in others if point is not best]
        alone = all(item.speedup_high is not None and item.speedup_high < low for item in rest)
        than = baselines[0].time_us if baselines else None
        return _made(where, best, best.ratio.baseline, than, best.ratio, fastest=alone, among=len(others))
    if baselines and others and all(point.ratio.verdict is Verdict.SLOWER for point in others):
        nearest = max(others, key=lambda point: point.ratio.speedup or 0.0)
        mine = _inverse(nearest.ratio)
        return _made(where, baselines[0], nearest.name, nearest.time_us, mine, fastest=True, among=len(others))
    return None


def _made(
    where: str, winner: Compared, than: str, than_us: float | None, ratio: Speedup, *, fastest: bool, among: int
) -> FasterRange:
    proof = Proof(
        size_bytes=winner.size_bytes, time_us=winner.time_us, than_us=than_us, factor=ratio.speedup or 1.0,
        low=ratio.speedup_low, high=ratio.speedup_high,
    )  # fmt: skip
    return FasterRange(
        where=where, faster=winner.name, than=than, fastest=fastest, is_default=winner.ratio.verdict is None,
        among=among, proofs=(proof,),
    )  # fmt: skip


def _inverse(ratio: Speedup) -> Speedup:
    """Return the ratio as the baseline sees it."""
    value, low, high = (1 / end if end else None for end in (ratio.speedup, ratio.speedup_low, ratio.speedup_high))
    return Speedup(baseline="", speedup=value, speedup_low=high, speedup_high=low)


def picture_title(lines: Iterable[Mapping[Any, Any]]) -> str:
    """Return what rows of one figure prove, as its title; "" where none was compared.

    lines: of `parquet.frame`, of one curve's setting: by column.
    """
    points = [
        Compared(name=str(line["label"]), size_bytes=int(line["size_bytes"]), time_us=float(line["time_us"]),
                 ratio=Speedup(**{name: _known(line[name]) for name in Speedup.__dataclass_fields__}))
        for line in lines
        if line["status"] == Status.OK and _known(line["baseline"]) is not None
    ]  # fmt: skip
    if not any(point.ratio.verdict is not None for point in points):
        return ""
    few = min(int(point.ratio.pairs or 0) for point in points if point.ratio.verdict is not None)
    return title(claims("", points), few)


def _known(value: Any) -> Any:
    """Return a frame's value, None for its nan."""
    return None if value is None or value != value else value


def answer(rows: Sequence[Row], ratios: Mapping[str, Speedup], meta: Mapping[str, Any]) -> Answer:
    """Return what a sweep found. meta: run.json, and `folder`, `planned` (cases) and `partial` (how
    much there is of a run that was stopped) where somebody knows them.
    """
    ok = [row for row in rows if row.status is Status.OK]
    bad = _unfinished(rows, meta)
    if not ok:
        return _without_numbers(rows, bad, meta)
    compared = [row for row in ok if row.case_id in ratios]
    setups = _setups(compared, ratios)
    found = [claim for setup in setups for claim in setup.claims]
    alike = numa.one_node(compared, meta)
    sentences = [f"{setup.where}: {_sentence(setup)}" for setup in setups] or _times(ok)
    sentences = [*([alike] if alike else []), *sentences]
    several = max((claim.among for claim in found if not claim.is_default), default=0)
    if several > 1:
        sentences.append(f"the best of {several} was picked from these launches, so it looks better than it is")
    sentences += yardstick.sentences(compared) if setups else []
    sentences += filter(None, [yardstick.warning(ok)])
    reason = preemption(rows, meta)
    notes = dict.fromkeys(filter(None, (network_note(row.fabric) for row in ok)))
    sentences += [*bad, *([reason] if reason else []), *notes]
    step, command = _go_on(bad, meta) if bad else _next(setups, found, ok, reason, meta)
    if alike and not bad and numa.only_by_node(compared) and all(setup.axis == "binding" for setup in setups):
        step, command = "keep binding=none; binding may pay where there are several NUMA nodes", ""
    if meta.get("joined") and command.startswith(("commbench sweep ", "commbench tune ")):
        step += ", started by the same launcher"
    return Answer(sentences=sentences, claims=found, step=step, command=command)


def _unfinished(rows: Sequence[Row], meta: Mapping[str, Any]) -> list[str]:
    """Return what is missing, in words."""
    sentences = []
    planned = int(meta.get("planned") or len(rows))
    interrupted = sum(row.status is Status.INTERRUPTED for row in rows)
    if meta.get("partial"):  # rows are of the launches that cases have so far
        sentences.append(f"partial: {meta['partial']}")
    elif missing := planned - len(rows) + interrupted:
        sentences.append(f"partial: {planned - missing} of {words.count(planned, 'case')} finished")
    failed = [row for row in rows if row.status not in (Status.OK, Status.SKIPPED, Status.INTERRUPTED)]
    if failed:
        counts = Counter(row.status.value for row in failed)
        kinds = ", ".join(f"{number} {status}" for status, number in counts.items())
        sentences.append(f"{len(failed)} of {words.count(len(rows), 'case')} failed ({kinds}){_why(failed)}")
    return sentences


def _why(rows: Sequence[Row]) -> str:
    reason = next((row.reason for row in rows if row.reason), "")
    return f": {reason[:_MOST_LETTERS]}" if reason else ""


def _without_numbers(rows: Sequence[Row], bad: Sequence[str], meta: Mapping[str, Any]) -> Answer:
    skipped = [row for row in rows if row.status is Status.SKIPPED]
    sentences = ["no case has numbers", *bad]
    if skipped:
        sentences.append(f"{words.count(len(skipped), 'case')} skipped{_why(skipped)}")
    if not bad:
        return Answer(sentences=sentences, step="choose what can run here", command="commbench recipes")
    step, command = _go_on(bad, meta)
    return Answer(sentences=sentences, step=step, command=command)


def _go_on(bad: Sequence[str], meta: Mapping[str, Any]) -> tuple[str, str]:
    """Return the step of a run that is not whole, and its command where the run's folder is known."""
    again = words.resume(meta["folder"], retry=any(" failed (" in text for text in bad)) if meta.get("folder") else ""
    if any(text.startswith("partial") for text in bad):
        return "go on", again
    return "read the reasons, remove them, measure the failed cases again", again


def _setups(rows: Sequence[Row], ratios: Mapping[str, Speedup]) -> list[_Setup]:
    """Return the compared rows by what they share."""
    setups: dict[tuple[Any, ...], _Setup] = {}
    shared = {row.case_id: _shared(row, _axis(ratios[row.case_id])) for row in rows}
    keys = list(shared.values())
    varied = {name for name in _DETAILS if len({key[name] for key in keys}) > 1}
    for row in rows:
        ratio = ratios[row.case_id]
        key = shared[row.case_id]
        made = _Setup(where=_where(row, _axis(ratio), key, varied), axis=_axis(ratio), first=row)
        setup = setups.setdefault(tuple(key.values()), made)
        point = Compared(name=_name(row, ratio), size_bytes=row.size_bytes, time_us=row.time_us or 0.0, ratio=ratio)
        setup.by_size.setdefault(row.size_bytes, []).append(point)
    return [setup for setup in setups.values() if setup.challengers]


def _axis(ratio: Speedup) -> str:
    """Return what was varied, by the baseline's name."""
    first = ratio.baseline.partition(" ")[0]
    if "=" not in first:
        return "algorithm"
    name, _, value = first.partition("=")
    return name if name in ("binding", "payload") or (name == "routing" and value in ROUTINGS) else "env"


def _name(row: Row, ratio: Speedup) -> str:
    """Return what a row is called beside those that it is compared with."""
    names: dict[str, Callable[[], str]] = {
        "algorithm": lambda: row.label,
        "routing": lambda: f"routing={row.routing}",
        "binding": lambda: row.binding_text or "binding=none",
        "payload": lambda: f"payload={row.arguments.get('payload', payloads.NONE)}",
        "env": lambda: ", ".join(f"{name}={value}" for name, value in row.env.items()),
    }
    return names[_axis(ratio)]()


# What tells set-ups apart, and is said only where it does.
_DETAILS = ("dtype", "mode", "buffers", "cache", "groups", "overlap", "env", "label")


def _shared(row: Row, axis: str) -> dict[str, str]:
    """Return what rows that were compared have in common, by name."""
    key = {
        "what": _what(row, axis), "transport": row.transport, "layout": f"{row.nodes}x{row.ranks} {row.fabric}",
        "emulation": str([getattr(row, name) for name in _EMULATED if name != axis]),
        "binding": "" if axis == "binding" else row.binding_text,
        "env": "" if axis == "env" else " ".join(f"{name}={value}" for name, value in row.env.items()),
        "label": "" if axis == "algorithm" else row.label,
    }  # fmt: skip
    key |= {name: getattr(row, name) for name in _DETAILS if name not in key}
    return {**key, "axis": axis}


def _where(row: Row, axis: str, key: Mapping[str, str], varied: Iterable[str]) -> str:
    """Return the set-up in short: what it is, and those details that others have otherwise."""
    emulated = ""
    if row.fabric == Fabric.EMULATED:
        setting = {name: getattr(row, name) for name in _EMULATED}
        emulated = describe_emulated(setting)
        if axis == "routing":
            emulated = emulated.replace(f", {row.routing}", "")
    layout = describe_layout(row.nodes, row.ranks, row.fabric)
    told = [f"{name}={value}" if name in ("groups", "overlap", "cache", "buffers") else value
            for name, value in key.items() if name in varied and value]  # fmt: skip
    return ", ".join(filter(None, [f"{key['what']} over {row.transport}", layout, emulated, key["binding"], *told]))


def _what(row: Row, axis: str) -> str:
    """Return the collective and what it was asked, without what was varied."""
    return " ".join(word for word in row.what.split(" ") if axis != "payload" or not word.startswith("payload="))


def _sentence(setup: _Setup) -> str:
    """Return what one set-up shows."""
    if found := setup.claims:
        proven = {size for claim in found for size in claim.sizes}
        rest = [size for size in sorted(setup.by_size) if size not in proven]
        texts = [str(claim) for claim in found]
        if rest:
            many = words.sizes(rest) if len(rest) == 1 else f"at {len(rest)} other sizes"
            texts.append(f"nothing is proven {many}")
        return ", ".join(texts)
    others = setup.challengers
    few = min(item.ratio.pairs or 0 for item in others)
    if missing := stats.missing_launches(few):
        return f"nothing is proven: {missing}"
    low, high = _widest(others)
    if low is None or high is None:
        return "nothing is proven: samples are missing"
    names = list(dict.fromkeys(item.name for item in others))
    against = f"{names[0] if len(names) == 1 else f'{len(names)} others'} against {others[0].ratio.baseline}"
    if any(stats.too_noisy(item.ratio.speedup_low or 0.0, item.ratio.speedup_high or 0.0) for item in others):
        return f"nothing is proven fastest: {against} is {words.TOO_NOISY}"
    return f"nothing is proven fastest: {against} is between {words.ends(low, high)}"


def _widest(others: Sequence[Compared]) -> tuple[float | None, float | None]:
    """Return the ends of an interval that holds all intervals; None where one is not estimable."""
    lows = [item.ratio.speedup_low for item in others]
    highs = [item.ratio.speedup_high for item in others]
    if None in lows or None in highs:
        return None, None
    return min(end for end in lows if end is not None), max(end for end in highs if end is not None)


def _times(rows: Sequence[Row]) -> list[str]:
    """Return the times of what has nothing beside it."""
    curves: dict[str, list[Row]] = {}
    for row in rows:
        emulated = describe_emulated({n: getattr(row, n) for n in _EMULATED}) if row.fabric == Fabric.EMULATED else ""
        layout = describe_layout(row.nodes, row.ranks, row.fabric)
        where = ", ".join(filter(None, [f"{row.what} over {row.transport}", layout, emulated, row.binding_text]))
        curves.setdefault(f"{where}: {row.label} takes", []).append(row)
    return [f"{what} {_range(of_curve)}" for what, of_curve in curves.items()]


def _range(rows: Sequence[Row]) -> str:
    """`20.1 us [19.8-20.5] at 1 KiB`, `20.1 us to 3.1 ms from 1 KiB to 32 MiB, busbw up to 4.1 GB/s`."""
    known = [row.time_us or 0.0 for row in rows]
    text = words.times(min(known), max(known))
    if len(rows) == 1:
        text = words.time_interval(rows[0].time_us or 0.0, rows[0].time_us_low, rows[0].time_us_high)
    text += f" {words.sizes([row.size_bytes for row in rows])}"
    busiest = max(rows, key=lambda row: (row.bound_fraction or 0.0, row.busbw_gbps or 0.0))
    if busiest.busbw_gbps:
        reached = f"{'' if len(rows) == 1 else 'up to '}{busiest.busbw_gbps:.3g} GB/s"
        if busiest.bound_gbps:
            reached = yardstick.of_bound(busiest.busbw_gbps, busiest.bound_gbps, busiest.bound_kind)
            reached += f" {words.sizes([busiest.size_bytes])}" if len(rows) > 1 else ""
        text += f", busbw {reached}"
    return text


def _next(
    setups: Sequence[_Setup], found: Sequence[FasterRange], ok: Sequence[Row], reason: str, meta: Mapping[str, Any]
) -> tuple[str, str]:
    """Return what to do after a whole run, in words and as a command."""
    ratios = [item.ratio for setup in setups for item in setup.challengers]
    undecided = [item.ratio for setup in setups if not setup.claims for item in setup.challengers]
    return next_step.after_comparison(ratios, undecided, found, ok, reason, meta)
