"""Rows as a table for people, under `#` comment lines that say what they share and what is odd about them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from commbench.analysis.ratios import Speedup, describe_ratios
from commbench.output.answer import words, yardstick
from commbench.output.answer.preemption import BUSY_PERCENT, preemption
from commbench.output.answer.sweep import answer
from commbench.output.describe import crowded, describe
from commbench.output.grid import AS_FITS, Column, TableStyle, folded, grid, interval, number
from commbench.records import NOMINAL, Fabric, Row, Status, network_note
from commbench.stats import Verdict
from commbench.units import format_size

_LONGEST_NAME = 14  # of a baseline in a heading
_VERDICTS = {None: "-", Verdict.NO_DIFFERENCE: "=", Verdict.NOT_ESTIMABLE: "?"}  # each one word


def columns(rows: Sequence[Row], ratios: Mapping[str, Speedup]) -> list[Column[Row]]:
    """Return all columns of rows of one set-up."""

    def value(field: str) -> Callable[[Row], str]:
        return lambda row: number(getattr(row, field))

    def percent(field: str, factor: float = 1.0) -> Callable[[Row], str]:
        return lambda row: "-" if (value := getattr(row, field)) is None else f"{factor * value:.0f}%"

    def nbytes(field: str) -> Callable[[Row], str]:
        return lambda row: "-" if (value := getattr(row, field)) is None else format_size(value).replace(" ", "")

    least_alone = not any(row.busbw_gbps for row in rows)  # algorithms that move unlike amounts have no busbw
    return [
        Column(name="size", text=lambda row: format_size(row.size_bytes).replace(" ", "")),
        Column(name="round", text=lambda row: str(row.arguments.get("round", "-"))),
        Column(name="algorithm", text=lambda row: row.label.replace(" ", ","), left=True, once=True),
        Column(name="time_us", text=value("time_us")),
        Column(name="interval", heading="[low-high]", goes=5,
               text=lambda row: interval(row.time_us_low, row.time_us_high, row.time_us)),
        Column(name="busbw", text=value("busbw_gbps"), goes=3),
        Column(name="of_mean", text=value("busbw_mean_gbps"), goes=6),
        Column(name="bound_us", text=value("bound_us"), goes=2, asked=not least_alone),
        Column(name="of_bound", text=percent("bound_fraction", 100), goes=4),
        *_ratio_columns(ratios),
        Column(name="comm_x", text=value("comm_slowdown"), goes=7),
        Column(name="compute_x", text=value("compute_slowdown"), goes=7),
        Column(name="overlap", text=percent("overlap_percent"), goes=1),
        Column(name="algbw", text=value("algbw_gbps"), asked=True),
        Column(name="bound", text=value("bound_gbps"), asked=True),
        Column(name="steps_us", text=value("steps_us"), asked=True),
        Column(name="payload", text=nbytes("payload_bytes"), goes=8),
        Column(name="error", text=value("payload_error"), goes=8),
        Column(name="tokens/s", text=value("tokens_per_s"), goes=9),
        Column(name="logical", text=value("logical_rank_gbps"), goes=9),
        Column(name="inter", text=nbytes("inter_bytes"), asked=True),
        Column(name="intra", text=nbytes("intra_bytes"), asked=True),
        Column(name="cpu", text=percent("cpu_percent"), asked=True),
        Column(name="host_us", text=value("host_us"), asked=True),
        Column(name="samples", text=lambda row: str(row.samples) if row.status is Status.OK else "-", asked=True),
        Column(name="stop", text=lambda row: row.stop_reason or "-", left=True, asked=True),
        Column(name="status", text=lambda row: row.status.value, left=True,
               asked=all(row.status is Status.OK for row in rows)),
    ]  # fmt: skip


def _ratio_columns(ratios: Mapping[str, Speedup]) -> list[Column[Row]]:
    """Return the columns of how much faster a row is than its baseline."""
    none = Speedup(baseline="")

    def of(row: Row) -> Speedup:
        return ratios.get(row.case_id, none)

    def verdict(row: Row) -> str:
        found = of(row).verdict
        return _VERDICTS.get(found, str(found))

    def ends(row: Row) -> str:
        return words.interval(of(row).speedup_low, of(row).speedup_high).strip() or "-"

    return [
        Column(name="speedup", heading=_ratio_name(ratios), text=lambda row: _x(of(row))),
        Column(name="x_interval", heading="[x_low-x_high]", text=ends),
        Column(name="verdict", text=verdict, left=True),
    ]


def _ratio_name(ratios: Mapping[str, Speedup]) -> str:
    """Return the heading: `vs_direct`, or `speedup` where there is no one baseline with a short name."""
    names = {ratio.baseline for ratio in ratios.values()}
    name = names.pop().replace(" ", ",") if len(names) == 1 else ""
    return f"vs_{name}" if 0 < len(name) <= _LONGEST_NAME else "speedup"


def _x(ratio: Speedup) -> str:
    """`1.50x`."""
    if ratio.speedup is None:
        return "-"
    return f"{ratio.speedup:.{words.decimals(ratio.speedup_low, ratio.speedup_high)}f}x"


def table(
    rows: Sequence[Row], meta: Mapping[str, Any], ratios: Mapping[str, Speedup], look: TableStyle = AS_FITS
) -> str:
    """Return rows in groups that share everything but size and algorithm, smallest size first.

    Raises `UsageError` for a column that there is not.
    """
    lines = [f"# commbench {meta['commbench_version']}, run {meta['run_id']}", *folded(meta["machine_text"])]
    lines += folded(f"PARTIAL: {meta['partial']}") if meta.get("partial") else []
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        env = tuple(row.env.items())
        key = (row.transport, row.what, row.dtype, row.mode, row.buffers, row.cache, row.nodes, row.ranks,
               row.groups, row.overlap, row.emulation, row.binding_text, env)  # fmt: skip
        groups.setdefault(key, []).append(row)
    for members in groups.values():
        compared = {row.case_id: ratios[row.case_id] for row in members if row.case_id in ratios}
        ordered = sorted(members, key=lambda row: row.size_bytes)
        laid = grid(columns(members, compared), ordered, look)
        lines += [
            "#",
            *folded(describe(members[0])),
            *folded(_explain(members)),
            *(folded(f"{_ratio_name(compared)}: {describe_ratios(compared.values())}") if compared else []),
            *(folded(f"bound: {text}") if (text := yardstick.sentence(members)) else []),
            *itertools.chain(*map(folded, _warnings(members, meta))),
            *itertools.chain(*map(folded, laid.notes)),
            *laid.framed(look),
        ]
    failed = [row for row in rows if row.status is not Status.OK and row.reason]
    for row in failed:
        lines += folded(f"{row.status}: {row.label}, {format_size(row.size_bytes)}: {row.reason}")
    lines += answer(rows, ratios, meta).lines()
    return "\n".join(lines) + "\n"


def _warnings(rows: Sequence[Row], meta: Mapping[str, Any]) -> list[str]:
    skews = [row.skew_us / row.time_us for row in rows if row.skew_us and row.time_us and row.mode == "isolated"]
    lines = [f"note: {note}"] if (note := network_note(rows[0].fabric)) else []
    if text := crowded(meta, rows[0].transport, rows[0].fabric, rows[0].ranks):
        lines.append(f"warning: {text}")
    if text := yardstick.warning(rows):
        lines.append(f"warning: {text}")
    if text := preemption(rows, meta):
        lines.append(f"warning: {text}")
    if skews and max(skews) > 0.2:
        lines.append(
            f"warning: ranks leave the barrier up to {100 * max(skews):.0f} % of the time apart; that is in the time"
        )
    if rows[0].fabric == Fabric.EMULATED:
        busy = [row for row in rows if (row.cpu_percent or 0) > BUSY_PERCENT]
        if busy:
            lines.append(
                f"warning: the CPUs were more than {BUSY_PERCENT} % busy in {len(busy)} of {len(rows)} cases, whose "
                "times are theirs as much as the links'"
            )
    part = [row for row in rows if row.mode == "isolated" and (row.checked_calls or row.samples) < row.samples]
    if part:
        share = 100 * sum(row.checked_calls or 0 for row in part) / sum(row.samples for row in part)
        lines.append(
            f"note: in {len(part)} of {len(rows)} cases {share:.0f} % of the timed calls were compared, drawn at "
            "random: to compare all would have taken over a third of the cap"
        )
    return lines


def _explain(rows: Sequence[Row]) -> str:
    ok = [row for row in rows if row.status is Status.OK]
    if not ok:
        return "no case has numbers"
    count = max(row.launches for row in ok)
    launches = f"{count} launch{'es' if count > 1 else ''}"
    if all(row.interval_of == "launches" for row in ok):
        of = f"95 % interval over {launches}"
    elif all(row.interval_of is None for row in ok):
        of = f"no interval: fewer than 6 samples in {launches}"
    else:
        of = f"95 % interval of samples in {launches}; the spread between launches is NOT in it"
    if any(row.busbw_mean_gbps for row in ok):
        of += "; busbw: of the busiest rank, of_mean: of the mean over ranks"
    if any(row.comm_slowdown for row in ok):
        of += "; comm_x, compute_x: how much slower than alone"
    bound = "" if any(row.bound_us or row.steps_us for row in ok) else f"; no bound: {_no_bound(ok)}"
    return f"time: slowest rank, median, {of}; bandwidth in GB/s (1e9){bound}"


def _no_bound(rows: Sequence[Row]) -> str:
    nominal = all(row.fabric in NOMINAL for row in rows)
    return "nothing passes a card between such nodes" if nominal else "no link rate is known (link_rate.inter=)"
