"""Rows as a table for people, under `#` comment lines that say what they share and what is odd about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from commbench.analysis.ratios import Speedup, describe_ratios
from commbench.output.answer import yardstick
from commbench.output.answer.preemption import BUSY_PERCENT, preemption
from commbench.output.answer.sweep import answer
from commbench.output.describe import describe, usable_cpus
from commbench.records import NOMINAL, Fabric, Row, Status, network_note
from commbench.stats import Verdict
from commbench.units import format_size

_VERDICTS = {None: "-", Verdict.NO_DIFFERENCE: "=", Verdict.NOT_ESTIMABLE: "?"}  # each one word


def _columns(rows: Sequence[Row], ratios: Mapping[str, Speedup]) -> list[tuple[str, int, Callable[[Row], str]]]:
    """(name, width, text of a row): those of every table, and those that say something of these rows only."""

    def number(field: str) -> Callable[[Row], str]:
        return lambda row: _number(getattr(row, field))

    def percent(field: str, factor: float = 1.0) -> Callable[[Row], str]:
        return lambda row: "-" if (value := getattr(row, field)) is None else f"{factor * value:.0f}%"

    def nbytes(field: str) -> Callable[[Row], str]:
        return lambda row: "-" if (value := getattr(row, field)) is None else format_size(value).replace(" ", "")

    columns: list[tuple[str, int, Callable[[Row], str]]] = [
        ("size", 10, lambda row: format_size(row.size_bytes).replace(" ", "")),
        *([("round", 5, lambda row: str(row.arguments["round"]))] if "round" in rows[0].arguments else []),
        ("algorithm", -max(18, *(len(row.label) for row in rows)), lambda row: row.label.replace(" ", ",")),
        ("time_us", 10, number("time_us")),
        ("low", 10, number("time_us_low")),
        ("high", 10, number("time_us_high")),
        ("algbw", 9, number("algbw_gbps")),
    ]
    if any(row.bound_us for row in rows) and not any(row.busbw_gbps for row in rows):
        columns.append(("bound_us", 9, number("bound_us")))
    else:
        columns.append(("busbw", 9, number("busbw_gbps")))
        if any(row.busbw_mean_gbps for row in rows):
            columns.append(("of_mean", 9, number("busbw_mean_gbps")))
        columns.append(("bound", 9, number("bound_gbps")))
    columns.append(("of_bound", 8, percent("bound_fraction", 100)))
    if any(row.steps_us for row in rows):
        columns.append(("steps_us", 9, number("steps_us")))
    if any(row.payload_bytes for row in rows):
        columns += [("payload", 9, nbytes("payload_bytes")), ("error", 7, number("payload_error"))]
    if rows[0].nodes > 1 and any(row.inter_bytes is not None for row in rows):
        columns += [("inter", 8, nbytes("inter_bytes")), ("intra", 8, nbytes("intra_bytes"))]
    if rows[0].fabric == Fabric.EMULATED:
        columns.append(("cpu", 4, percent("cpu_percent")))
    if any(row.comm_slowdown for row in rows):
        columns += [
            ("comm_x", 7, number("comm_slowdown")),
            ("compute_x", 9, number("compute_slowdown")),
            ("overlap", 7, percent("overlap_percent")),
        ]
    if ratios:
        none = Speedup(baseline="")

        def speedup(field: str) -> Callable[[Row], str]:
            return lambda row: _number(getattr(ratios.get(row.case_id, none), field))

        def verdict(row: Row) -> str:
            found = ratios.get(row.case_id, none).verdict
            return _VERDICTS.get(found, str(found))

        columns += [
            ("speedup", 8, speedup("speedup")),
            ("x_low", 7, speedup("speedup_low")),
            ("x_high", 7, speedup("speedup_high")),
            ("verdict", -7, verdict),
        ]
    return [
        *columns,
        ("host_us", 9, number("host_us")),
        ("samples", 7, lambda row: str(row.samples) if row.status is Status.OK else "-"),
        ("stop", -9, lambda row: row.stop_reason or "-"),
        ("status", -13, lambda row: row.status.value),
    ]


def table(rows: Sequence[Row], meta: Mapping[str, Any], ratios: Mapping[str, Speedup]) -> str:
    """Rows in groups that share everything but size and algorithm, smallest size first."""
    lines = [f"# commbench {meta['commbench_version']}, run {meta['run_id']}", f"# {meta['machine_text']}"]
    lines += [f"# PARTIAL: {meta['partial']}"] if meta.get("partial") else []
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        env = tuple(row.env.items())
        key = (row.transport, row.what, row.dtype, row.mode, row.buffers, row.cache, row.nodes, row.ranks,
               row.groups, row.overlap, row.emulation, row.binding_text, env)  # fmt: skip
        groups.setdefault(key, []).append(row)
    for members in groups.values():
        compared = {row.case_id: ratios[row.case_id] for row in members if row.case_id in ratios}
        columns = _columns(members, compared)
        lines += [
            "#",
            f"# {describe(members[0])}",
            f"# {_explain(members)}",
            *([f"# speedup: {describe_ratios(compared.values())}"] if compared else []),
            *([f"# bound: {text}"] if (text := yardstick.sentence(members)) else []),
            *_warnings(members, meta),
            "#" + "  ".join(_cell(name, width) for name, width, _ in columns)[1:].rstrip(),
        ]
        for row in sorted(members, key=lambda row: row.size_bytes):
            lines.append("  ".join(_cell(text(row), width) for _, width, text in columns).rstrip())
    failed = [row for row in rows if row.status is not Status.OK and row.reason]
    lines += [f"# {row.status}: {row.label}, {format_size(row.size_bytes)}: {row.reason}" for row in failed]
    lines += answer(rows, ratios, meta).lines()
    return "\n".join(lines) + "\n"


def _warnings(rows: Sequence[Row], meta: Mapping[str, Any]) -> list[str]:
    cpus = usable_cpus(meta)
    skews = [row.skew_us / row.time_us for row in rows if row.skew_us and row.time_us and row.mode == "isolated"]
    lines = [f"# note: {note}"] if (note := network_note(rows[0].fabric)) else []
    # On an emulated network the links decide, unless the CPUs are busy; ranks of real nodes are elsewhere.
    if rows[0].fabric not in (Fabric.REAL, Fabric.EMULATED) and 0 < cpus < rows[0].ranks:
        lines.append(f"# warning: {rows[0].ranks} ranks share {cpus} CPUs, so times include waiting for a CPU")
    if text := yardstick.warning(rows):
        lines.append(f"# warning: {text}")
    if text := preemption(rows, meta):
        lines.append(f"# warning: {text}")
    if skews and max(skews) > 0.2:
        lines.append(
            f"# warning: ranks leave the barrier up to {100 * max(skews):.0f} % of the time apart; that is in the time"
        )
    if rows[0].fabric == Fabric.EMULATED:
        busy = [row for row in rows if (row.cpu_percent or 0) > BUSY_PERCENT]
        if busy:
            lines.append(
                f"# warning: the CPUs were more than {BUSY_PERCENT} % busy in {len(busy)} of {len(rows)} cases, whose "
                "times are theirs as much as the links'"
            )
    part = [row for row in rows if row.mode == "isolated" and (row.checked_calls or row.samples) < row.samples]
    if part:
        share = 100 * sum(row.checked_calls or 0 for row in part) / sum(row.samples for row in part)
        lines.append(
            f"# note: in {len(part)} of {len(rows)} cases {share:.0f} % of the timed calls were compared, drawn at "
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
    if any(row.steps_us for row in ok):
        of += "; steps_us: the least that the algorithm's own messages take"
    bound = "" if any(row.bound_us or row.steps_us for row in ok) else f"; no bound: {_no_bound(ok)}"
    return f"time: slowest rank, median, {of}; bandwidth in GB/s (1e9){bound}"


def _no_bound(rows: Sequence[Row]) -> str:
    nominal = all(row.fabric in NOMINAL for row in rows)
    return "nothing passes a card between such nodes" if nominal else "no link rate is known (link_rate.inter=)"


def _number(value: float | None) -> str:
    """Four significant digits, never an exponent."""
    if value is None:
        return "-"
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 10 else 3 if value >= 1 else 4
    return f"{value:.{digits}f}"


def _cell(text: str, width: int) -> str:
    return text.ljust(-width) if width < 0 else text.rjust(width)
