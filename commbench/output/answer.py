"""The answer of a sweep: what is fastest where, for certain, and what stood in the way of saying more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from commbench.analysis.ratios import Speedup
from commbench.output.describe import describe_emulated, describe_layout, usable_cpus
from commbench.records import Fabric, Row, Status
from commbench.stats import Verdict
from commbench.units import format_size, unit_of_us

MANY = 0.05  # of the samples: so many preempted ones are said
_OWN_LOAD = 0.5  # so much above a load of one for each rank is still theirs
BUSY_PERCENT = 90  # from there on an emulated fabric is about the CPUs


def preemption(rows: Sequence[Row], meta: Mapping[str, Any]) -> str:
    """Return how many samples were preempted, and by whom; "" where they were few, or nobody counted."""
    # On an emulated network ranks wait for links most of the time, and a switch costs nothing, unless CPUs are busy.
    known = [row for row in rows if row.status is Status.OK and row.preempted is not None and not _links_decide(row)]
    if (share := _share(known)) < MANY:
        return ""
    cpus, ranks = usable_cpus(meta), max(row.ranks for row in known)
    load = max(row.load_average or 0.0 for row in known)
    fitting = [row for row in known if not 0 < cpus < row.ranks]
    if _share(fitting) < MANY:
        whose = f"{ranks} ranks share {cpus} CPUs"
    elif load > max(row.ranks for row in fitting) + _OWN_LOAD:
        whose = "other programs use these CPUs"
    else:  # the load is the ranks' own: a library's threads beside them, or the system
        whose = "threads of the library or the system took their CPUs"
    return f"{100 * share:.0f} % of samples were preempted: {whose}, load {load:.1f}"


def _links_decide(row: Row) -> bool:
    return row.fabric == Fabric.EMULATED and (row.cpu_percent or 0.0) <= BUSY_PERCENT


def _share(rows: Sequence[Row]) -> float:
    return sum(row.preempted or 0 for row in rows) / max(1, sum(row.samples for row in rows))


def answer(rows: Sequence[Row], ratios: Mapping[str, Speedup], meta: Mapping[str, Any]) -> str:
    """Return one sentence for each set-up in which something is fastest for certain; "" where nothing was compared."""
    by_setup: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        if row.status is Status.OK and row.case_id in ratios:
            by_setup.setdefault(_where(row), {}).setdefault(row.size_bytes, []).append(row)
    if not by_setup:
        return ""
    found = []
    for where, by_size in by_setup.items():
        said = [text for size in sorted(by_size) if (text := _fastest(by_size[size], ratios))]
        found += [f"{where}: {', '.join(said)}"] if said else []
    reason = preemption(rows, meta)
    if not found:
        found = [f"nothing is proven fastest{'' if reason else ': measure longer, launches=12 cap=1'}"]
    return "; ".join([*found, *([reason] if reason else [])])


def _where(row: Row) -> str:
    """Return the set-up in short."""
    emulated = describe_emulated({f: getattr(row, f) for f in _EMULATED}) if row.fabric == Fabric.EMULATED else ""
    layout = describe_layout(row.nodes, row.ranks, row.fabric)
    return ", ".join(filter(None, [f"{row.what} over {row.transport}", layout, emulated, row.binding_text]))


_EMULATED = ("nodes", "link", "message_overhead", "spines", "routing", "intra_link", "slow_link")


def _fastest(rows: Sequence[Row], ratios: Mapping[str, Speedup]) -> str:
    """Return the fastest at one size with its time and how far the next is; "" where that is not certain."""
    # One curve's rows at this size: of other dtypes and modes there are others, of which none is the fastest.
    first, *others = sorted(rows, key=lambda row: row.time_us or 0.0)
    if len({(row.dtype, row.mode, row.buffers, row.cache, row.groups, row.overlap, str(row.env)) for row in rows}) > 1:
        return ""
    mine = ratios[first.case_id]
    size, interval = format_size(first.size_bytes), ""
    scale, unit = unit_of_us(first.time_us or 0.0)
    if first.time_us_low is not None and first.time_us_high is not None:
        interval = f" [{first.time_us_low / scale:.4g}, {first.time_us_high / scale:.4g}]"
    time = f"{first.label} is fastest at {size}, {(first.time_us or 0.0) / scale:.4g} {unit}{interval}"
    if mine.verdict is None and others and all(ratios[row.case_id].verdict is Verdict.SLOWER for row in others):
        slowest = min(others, key=lambda row: row.time_us or 0.0)
        return f"{time}, {slowest.label} takes {1 / (ratios[slowest.case_id].speedup or 1.0):.2f}x"
    beaten = [ratios[row.case_id] for row in others if ratios[row.case_id].verdict is Verdict.FASTER]
    sure = mine.speedup_low is not None and all((other.speedup_high or 0.0) < mine.speedup_low for other in beaten)
    if mine.verdict is Verdict.FASTER and sure:
        return f"{time}, {mine.speedup:.2f}x {mine.baseline} [{mine.speedup_low:.2f}, {mine.speedup_high:.2f}]"
    return ""
