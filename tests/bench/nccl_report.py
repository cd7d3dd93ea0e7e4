"""What `tests.bench.nccl` says of its rows: tables, ratios and gates.

Times are means over ranks: nccl-tests' default, and our `time_us_mean`. `way` names a line of either tool: nccl-tests'
options, or our algorithm with its parameters, mode and buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from commbench import stats
from commbench.formats.result import busbw_factor
from commbench.units import format_size, gbps

OURS, THEIRS = "commbench", "nccl-tests"
KIB, MIB = 1 << 10, 1 << 20
MODES = {  # nccl-tests' options, by the name that tables give them
    "default": (),
    "-G 20": ("-G", "20"),
    "-R 1": ("-R", "1"),
    "-R 1 -G 20": ("-R", "1", "-G", "20"),
    "-R 2": ("-R", "2"),
    "-R 2 -G 20": ("-R", "2", "-G", "20"),
    "-R 2 -x 2": ("-R", "2", "-x", "2"),
    "-R 2 -D 2 -G 20": ("-R", "2", "-D", "2", "-G", "20"),
}
EXTRA = "-R 2 -x 2"
DEVICE = "-R 2 -D 2 -G 20"
FIVE = ("default", "-G 20", "-R 1", "-R 2", DEVICE)  # of the gates
SEVEN = tuple(mode for mode in MODES if mode != EXTRA)
ALIKE = {  # ours by mode, beside theirs
    "pipelined": tuple(mode for mode in SEVEN if "-G" not in mode),
    "graph": tuple(mode for mode in SEVEN if "-G" in mode),
}
_ALMOST = 0.999  # sizes are rounded down to what all ranks can share

Times = dict[int, float]  # microseconds by round


@dataclass(frozen=True, slots=True)
class Ratio:
    """theirs / ours, paired by round: above 1 ours is faster."""

    centre: float
    low: float
    high: float
    rounds: int
    of: str  # what the interval is

    def __str__(self) -> str:
        return f"{self.centre:.3f} [{self.low:.3f}..{self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Gate:
    name: str
    verdict: str  # PASS, FAIL, not measured
    figure: float | None
    text: str
    counts: bool = True  # otherwise it is shown beside those that do


@dataclass(slots=True)
class Table:
    """Times of both tools by way, size and round, and what our rows say besides."""

    ranks: int
    times: dict[str, dict[str, dict[int, Times]]] = field(default_factory=lambda: {OURS: {}, THEIRS: {}})
    host_us: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    bound: dict[int, list[float]] = field(default_factory=dict)
    about: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # a row of ours, by way

    @property
    def sizes(self) -> list[int]:
        return sorted({size for ways in self.times.values() for sizes in ways.values() for size in sizes})

    @property
    def rounds(self) -> int:
        every = (rounds for ways in self.times.values() for sizes in ways.values() for rounds in sizes.values())
        return len({number for rounds in every for number in rounds})

    def at(self, tool: str, way: str | None, size: int) -> Times:
        return self.times[tool].get(way or "", {}).get(size, {})

    def busbw(self, size: int, time_us: float) -> float:
        return gbps(size, time_us) * (busbw_factor("all_to_all", self.ranks) or 0)

    def best(self, tool: str, size: int, ways: Iterable[str]) -> str | None:
        """The least median over rounds, of the ways that were measured in at least half as many rounds as any."""
        found = {way: times for way in ways if (times := self.at(tool, way, size))}
        most = max(map(len, found.values()), default=0)
        enough = [way for way, times in found.items() if 2 * len(times) >= most]
        return min(enough, key=lambda way: middle(found[way]), default=None)

    def best_of_ours(self, size: int, modes: Sequence[str] = ("pipelined", "graph")) -> str | None:
        """`isolated` starts each call on an idle network after a barrier: nccl-tests has nothing like it."""
        return self.best(OURS, size, [way for way, row in self.about.items() if row["mode"] in modes])

    def direct(self, mode: str, buffers: str, size: int) -> str | None:
        wanted: tuple[Any, ...] = ("direct", mode, buffers, {})
        ways = [
            way
            for way, row in self.about.items()
            if (row["algorithm"], row["mode"], row["buffers"], row.get("env") or {}) == wanted
        ]
        return self.best(OURS, size, ways)

    def ratio(self, theirs: str | None, ours: str | None, size: int) -> Ratio | None:
        return ratio(self.at(THEIRS, theirs, size), self.at(OURS, ours, size))

    def ceiling(self, size: int) -> float | None:
        return float(np.median(self.bound[size])) if self.bound.get(size) else None


def middle(times: Times) -> float:
    return float(np.median(list(times.values())))


def usable(row: Mapping[str, Any]) -> bool:
    return row["status"] == "ok" and not row.get("wrong") and bool(row.get("time_us"))


def collect(rows: Iterable[Mapping[str, Any]], ranks: int) -> Table:
    """Right results only."""
    table = Table(ranks)
    for row in rows:
        if not usable(row) or row["gpus"] != ranks:
            continue
        tool, way, size = row["tool"], row["way"], row["size_bytes"]
        table.times[tool].setdefault(way, {}).setdefault(size, {})[row["round"]] = row["time_us"]
        if tool == OURS:
            table.about.setdefault(way, row)
            if row.get("host_us") is not None:
                table.host_us.setdefault((way, size), []).append(row["host_us"])
            if row.get("bound_gbps"):
                table.bound.setdefault(size, []).append(row["bound_gbps"])
    return table


def ratio(theirs: Times, ours: Times) -> Ratio | None:
    """Median over the rounds that have both; its interval from 6 of them up, below that the least and the largest."""
    shared = sorted(theirs.keys() & ours.keys())
    pairs = [[np.array([times[number]]) for number in shared] for times in (theirs, ours)]
    if len(shared) >= stats.LAUNCHES_FOR_INTERVAL and (found := stats.ratio(*pairs)) and found.interval:
        return Ratio(
            found.value,
            found.interval.low,
            found.interval.high,
            len(shared),
            f"95 % interval over {len(shared)} rounds",
        )
    centre = stats.median_ratio(*pairs)
    if centre is None:
        return None
    each = [theirs[number] / ours[number] for number in shared]
    # The geometric middle of two that are equal can lie a rounding error outside.
    low, high = min(centre, *each), max(centre, *each)
    return Ratio(centre, low, high, len(shared), f"min..max over {len(shared)} round{'s' if len(shared) > 1 else ''}")


def gates(table: Table) -> list[Gate]:
    def like(mode: str, buffers: str, other: str) -> Callable[[int], Ratio | None]:
        return lambda size: table.ratio(other, table.direct(mode, buffers, size), size)

    def best(of: Sequence[str]) -> Callable[[int], Ratio | None]:
        return lambda size: table.ratio(table.best(THEIRS, size, of), table.best_of_ours(size), size)

    def within(share: float) -> Callable[[float], float]:
        """Either way: the same thing measured by two tools should take the same time."""
        return lambda centre: share - abs(centre - 1)

    def least(limit: float) -> Callable[[float], float]:
        return lambda centre: centre - limit

    found = [_gate(table, "direct pipelined plain within 5 % of default, from 64 MiB", (64 * MIB, None),
                   like("pipelined", "plain", "default"), within(0.05))]  # fmt: skip
    for other in ("-G 20", "-R 1 -G 20"):
        for share, name, sizes in ((0.05, "from 16 MiB", (16 * MIB, None)), (0.12, "1 to 4 MiB", (MIB, 4 * MIB))):
            text = f"direct graph registered within {share * 100:.0f} % of {other}, {name}"
            found.append(_gate(table, text, sizes, like("graph", "registered", other), within(share)))
    of_what = ((FIVE, "best of default, -G, -R 1, -R 2, -R 2 -D 2 -G", True),
               (SEVEN, f"best of all modes but {EXTRA}", False),
               (tuple(MODES), "best of all modes", False))  # fmt: skip
    for modes, name, counts in of_what:
        for limit, sign, where, sizes in (
            (0.97, ">=", "everywhere", (0, None)),
            (1.04, ">=", "from 256 MiB", (256 * MIB, None)),
            (1.0, ">", "at 64 MiB", (64 * MIB, 64 * MIB)),
        ):
            test = least(limit if sign == ">=" else float(np.nextafter(limit, 2)))
            text = f"best of ours {sign} {limit:g}x the {name}, {where}"
            found.append(_gate(table, text, sizes, best(modes), test, counts=counts))
    found.append(
        _gate(table, f"best of ours at most 1.03x the time of {DEVICE}, at 1 KiB", (KIB, KIB), best([DEVICE]),
              least(1 / 1.03), shown=lambda centre: 1 / centre)
    )  # fmt: skip
    return found


def _gate(
    table: Table,
    name: str,
    sizes: tuple[int, int | None],
    measured: Callable[[int], Ratio | None],
    margin: Callable[[float], float],
    *,
    counts: bool = True,
    shown: Callable[[float], float] = lambda centre: centre,
) -> Gate:
    """Its worst size decides: the one with the least margin, which fails below 0."""
    wanted = [size for size in table.sizes if sizes[0] * _ALMOST <= size <= (sizes[1] or size)]
    ratios = {size: found for size in wanted if (found := measured(size))}
    if not ratios:
        return Gate(name, "not measured", None, "", counts)
    worst = min(ratios, key=lambda size: margin(ratios[size].centre))
    found = ratios[worst]
    low, high = sorted((shown(found.low), shown(found.high)))
    passed = margin(found.centre) >= 0
    text = f"{shown(found.centre):.4f} [{low:.3f}..{high:.3f}] at {format_size(worst)}"
    text += f", worst of {len(ratios)} sizes" if len(ratios) > 1 else ""
    text += f"; {len(wanted) - len(ratios)} sizes not measured" if len(ratios) < len(wanted) else ""
    text += "; ours is the faster one" if not passed and "within" in name and found.centre > 1 else ""
    return Gate(name, "PASS" if passed else "FAIL", shown(found.centre), text, counts)


def markdown(table: Table, about: Sequence[str], notes: Sequence[str]) -> str:
    """The report: what was run, gates, the best of each tool, like for like, everything, notes."""
    parts = ["# commbench beside nccl-tests, all-to-all", "\n".join(f"- {line}" for line in about)]
    parts += ["## Gates", _gates_table(table), "## The best of each", _best_table(table)]
    parts += ["## The best of each, calls of the host beside such calls, graphs beside graphs", _alike_table(table)]
    parts += ["## Like for like", _like_table(table), "## Every way", _all_table(table)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in notes) or "None."]
    return "\n\n".join(parts) + "\n"


def _rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _gates_table(table: Table) -> str:
    text = (
        "theirs / ours, above 1 ours is faster (at 1 KiB: ours / theirs); the median of rounds decides. The best of "
        "each is chosen from these same numbers.\n\n"
    )
    marks = {True: "", False: " (shown, no gate)"}
    return text + _rows(
        ("gate", "", "figure"),
        ([gate.name + marks[gate.counts], gate.verdict, gate.text or "-"] for gate in gates(table)),
    )


def _best_table(table: Table) -> str:
    rows = []
    intervals = set()
    for size in table.sizes:
        mine = table.best_of_ours(size)
        theirs = table.best(THEIRS, size, SEVEN)
        found, extra = table.ratio(theirs, mine, size), table.ratio(EXTRA, mine, size)
        intervals |= {each.of for each in (found, extra) if each}
        rows.append([
            format_size(size),
            *_cells(table, OURS, mine, size),
            *_cells(table, THEIRS, theirs, size),
            str(found or "-"),
            _percent(table, mine, size),
            str(extra or "-"),
        ])  # fmt: skip
    heads = ["size", "best of ours", "us", "busbw", f"best of nccl-tests without {EXTRA}", "us", "busbw"]
    heads += ["theirs / ours", "ours of the ceiling", f"{EXTRA} / ours"]
    text = (
        "us: mean over ranks, median over rounds (min..max). busbw in GB/s, of that time. The ceiling is that of copy "
    )
    text += f"engines, as our transport measures it. Ratios are paired by round: {'; '.join(sorted(intervals)) or '-'}."
    return f"{text}\n\n{_rows(heads, rows)}"


def _alike_table(table: Table) -> str:
    rows = []
    for size in table.sizes:
        cells = [format_size(size)]
        for mode, others in ALIKE.items():
            mine, theirs = table.best_of_ours(size, (mode,)), table.best(THEIRS, size, others)
            for tool, way in ((OURS, mine), (THEIRS, theirs)):
                cells += _cells(table, tool, way, size)[:2]
            cells.append(str(table.ratio(theirs, mine, size) or "-"))
        rows.append(cells)
    heads = ["size"]
    for mode in ALIKE:
        heads += [f"ours, {mode}", "us", "nccl-tests", "us", "theirs / ours"]
    return _rows(heads, rows)


def _cells(table: Table, tool: str, way: str | None, size: int) -> list[str]:
    """Name, time, bandwidth."""
    times = table.at(tool, way, size)
    if not times or way is None:
        return ["-", "-", "-"]
    return [way, _spread(times), f"{table.busbw(size, middle(times)):.1f}"]


def _spread(times: Times) -> str:
    return f"{middle(times):.2f} ({min(times.values()):.2f}..{max(times.values()):.2f})" if times else "-"


def _percent(table: Table, way: str | None, size: int) -> str:
    times, ceiling = table.at(OURS, way, size), table.ceiling(size)
    if not times or not ceiling:
        return "-"
    return f"{100 * table.busbw(size, middle(times)) / ceiling:.1f} % of {ceiling:.0f}"


def _like_table(table: Table) -> str:
    rows = []
    for size in table.sizes:
        cells = [format_size(size)]
        for mode, buffers, other in LIKE:
            way = table.direct(mode, buffers, size)
            cells += [_spread(table.at(OURS, way, size)), _spread(table.at(THEIRS, other, size))]
            cells += [str(table.ratio(other, way, size) or "-"), _host(table, way, size)]
        rows.append([*cells, _host(table, table.best_of_ours(size), size)])
    heads = ["size"]
    for mode, buffers, other in LIKE:
        heads += [f"direct {mode} {buffers}, us", f"{other}, us", "theirs / ours", "host us"]
    text = "host us: what a call of ours costs the thread that makes it."
    return f"{text}\n\n{_rows([*heads, 'host us of our best'], rows)}"


LIKE = (("pipelined", "plain", "default"), ("graph", "registered", "-R 1 -G 20"))


def _host(table: Table, way: str | None, size: int) -> str:
    values = table.host_us.get((way or "", size))
    return f"{float(np.median(values)):.2f}" if values else "-"


def _all_table(table: Table) -> str:
    """Bold: the best of its tool. Ours come in the order of their names, theirs in that of their options."""
    sizes = table.sizes
    rows = []
    for tool, ways in (
        (OURS, sorted(table.times[OURS])),
        (THEIRS, [way for way in MODES if way in table.times[THEIRS]]),
    ):
        best = {size: table.best_of_ours(size) if tool == OURS else table.best(tool, size, ways) for size in sizes}
        for way in ways:
            cells = []
            for size in sizes:
                times = table.at(tool, way, size)
                text = "-"
                if times:
                    value = middle(times)
                    text = f"{table.busbw(size, value):.1f}" if size >= 4 * MIB * _ALMOST else f"{value:.2f}"
                cells.append(f"**{text}**" if way == best[size] else text)
            rows.append([tool, way, *cells])
    return "Microseconds below 4 MiB, GB/s of busbw from there.\n\n" + _rows(
        ("", "", *(format_size(size) for size in sizes)), rows
    )


def summary(table: Table, about: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    """The same as data. `ratio` is theirs / ours."""

    def side(tool: str, way: str | None, size: int) -> dict[str, Any] | None:
        times = table.at(tool, way, size)
        if not times:
            return None
        time_us = middle(times)
        return {"way": way, "time_us": time_us, "min_us": min(times.values()), "max_us": max(times.values()),
                "rounds": len(times), "busbw_gbps": table.busbw(size, time_us)}  # fmt: skip

    def versus(theirs: str | None, ours: str | None, size: int) -> dict[str, Any]:
        found = table.ratio(theirs, ours, size)
        return {
            "ours": side(OURS, ours, size),
            "theirs": side(THEIRS, theirs, size),
            "ratio": asdict(found) if found else None,
        }

    sizes = []
    for size in table.sizes:
        mine = table.best_of_ours(size)
        ceiling = table.ceiling(size)
        ours = side(OURS, mine, size)
        like = {other: versus(other, table.direct(mode, kind, size), size) for mode, kind, other in LIKE}
        sizes.append({
            "size_bytes": size,
            "best": versus(table.best(THEIRS, size, SEVEN), mine, size),
            "against": {way: versus(way, mine, size)["ratio"] for way in table.times[THEIRS]},
            "like_for_like": like,
            "alike": {mode: versus(table.best(THEIRS, size, others), table.best_of_ours(size, (mode,)), size)
                      for mode, others in ALIKE.items()},
            "ceiling_gbps": ceiling,
            "of_ceiling": ours["busbw_gbps"] / ceiling if ours and ceiling else None,
        })  # fmt: skip
    return {
        "ranks": table.ranks,
        "rounds": table.rounds,
        "about": list(about),
        "gates": [asdict(gate) for gate in gates(table)],
        "sizes": sizes,
        "notes": list(notes),
    }
