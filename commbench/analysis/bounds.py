"""The yardstick: the least time that the links allow a case, or a line of another program's log. Nothing else says it.

The rates are those that the ranks found (nominal, measured, or of an emulated network), and above them those that the
user declares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from commbench import algorithms, collectives
from commbench.formats.result import Result, busbw_factor
from commbench.layout import LINK_CLASSES, Layout, LinkClass
from commbench.links import LeastTime, LinkRate, Need, least_time, of_messages, of_shared, parse_link_rate
from commbench.records import NOMINAL, Case, Measurement, Row, Status
from commbench.run_folder import RunFolder
from commbench.spec import Spec, Value
from commbench.units import gbps

Rates = Mapping[str, LinkRate]  # by class of link


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a user says of runs and of other programs' logs that these do not say themselves."""

    ranks: int | None = None
    nodes: int | None = None
    rates: Rates = field(default_factory=dict)


def declared(texts: Mapping[str, str]) -> dict[str, LinkRate]:
    """Return the rates of run.json's `link_rate`: {"inter": "4x400gbit"}. Raises `UsageError`."""
    return {link: parse_link_rate(link, texts[link]) for link in LINK_CLASSES if link in texts}


def links_of(measurement: Measurement, rates: Rates) -> dict[str, LinkRate]:
    """Return the rates that hold for a measurement: nothing passes the cards of nodes that are no machines."""
    nominal = measurement.fabric in NOMINAL
    said = {link: rate for link, rate in rates.items() if not (nominal and link == "inter")}
    return {**(measurement.links or {}), **said}


def of_case(case: Case, links: Mapping[str, LinkRate]) -> tuple[LeastTime | None, float | None]:
    """Return what the links allow the collective at the least, and the microseconds of the algorithm's own messages."""
    spec, collective = case.spec, collectives.get(case.collective)
    # Groups that share a node's links have a part of them each.
    share = spec.layout.ranks_per_node / case.setup.ranks_per_node
    least = least_time(collective.needs(spec), links, spec.layout, share=share)
    algorithm = algorithms.find(case.collective, case.algorithm)
    steps = None if algorithm is None else algorithm.steps(collective.on_wire(spec))
    if steps is None:
        return least, None

    def charged(link: LinkClass, nbytes: int) -> int:
        return links[link].charged(nbytes) if link in links else nbytes

    needs = of_messages((send for step in steps for send in step.sends), spec.layout, charged)
    of_steps = least_time(needs, links, spec.layout, share=share)
    return least, of_steps.us if of_steps else None


def of_rows(folder: RunFolder, rows: Mapping[str, Row], rates: Rates) -> Mapping[str, Row]:
    """Return rows of a run, by case id; where there are rates, with the bounds that they make."""
    if not rates:
        return rows
    cases = {item.case.case_id: item.case for item in folder.plan()}
    first: dict[str, Measurement] = {}
    for measurement in folder.measurements():
        if measurement.status is Status.OK:
            first.setdefault(measurement.case_id, measurement)
    return {
        id: rebound(row, cases[id], first[id], rates) if id in cases and id in first else row
        for id, row in rows.items()
    }


def rebound(row: Row, case: Case, measurement: Measurement, rates: Rates) -> Row:
    """Return a finished row with the bound that these rates make, in place of the one that it had."""
    if row.status is not Status.OK or not row.time_us:
        return row
    least, steps_us = of_case(case, links_of(measurement, rates))
    return dataclasses.replace(row, steps_us=steps_us, **numbers(case.spec, row.time_us, least))


def numbers(spec: Spec, time_us: float, least: LeastTime | None) -> dict[str, Any]:
    """Return what rows say of the bound."""
    factor = collectives.get(spec.collective).busbw_factor(spec)
    return {
        "bound_gbps": None if least is None or factor is None else gbps(spec.size_bytes, least.us) * factor,
        "bound_fraction": least.us / time_us if least else None,
        "bound_us": least.us if least else None,
        "bound_kind": least.kind if least else "",
    }


def of_result(result: Result, rates: Rates) -> LeastTime | None:
    """Return what these rates allow one line of another program's log; None where that cannot be told."""
    if _lacking(result, rates):
        return None
    layout = _layout(result)
    return least_time(_needs(result, layout), rates, layout)


def bound_gbps(result: Result, least: LeastTime | None) -> float | None:
    """Return the busbw at the least time, GB/s."""
    factor = busbw_factor(result.collective or "", result.ranks or 1)
    return None if least is None or factor is None else gbps(result.size_bytes, least.us) * factor


def missing(results: Sequence[Result], rates: Rates) -> str:
    """Return in words what has to be known for a bound, the first thing; "" where any of these lines has one."""
    reasons = [_lacking(result, rates) for result in results]
    return reasons[0] if reasons and all(reasons) else ""


def _lacking(result: Result, rates: Rates) -> str:
    if not rates:
        return "no link rate is declared: --link-rate inter=4x400gbit --link-rate intra=450GBps"
    if result.ranks is None:
        return "it does not say how many ranks ran: --ranks N"
    if result.nodes is None:
        return "it does not say on how many nodes its ranks ran: --nodes N"
    if len({*result.per_node}) > 1:
        counts = ", ".join(map(str, result.per_node))
        return f"its nodes have {counts} ranks, and a bound is computed for equally many on each"
    if result.groups != "world":
        return f"{result.groups} share the links, and it does not say how"
    if not _needs(result, _layout(result)):
        return f"what {result.collective or 'an unnamed collective'} must move is not in it"
    return ""


def _layout(result: Result) -> Layout:
    nodes = result.nodes or 1
    return Layout(nodes, (result.ranks or 1) // nodes)


def _needs(result: Result, layout: Layout) -> list[Need]:
    """Return what must travel; nothing where the log does not say it: uneven splits, unknown collectives."""
    name, size = result.collective or "", result.size_bytes
    if name == "all_to_allv" and result.even:
        name = "all_to_all"
    if name in ("all_gather", "gather", "scatter", "all_gatherv", "gatherv", "scatterv"):
        n, nodes = layout.ranks, layout.nodes
        return of_shared(size * (n - 1) / n, size * (nodes - 1) / nodes, layout)
    if name == "reduce":
        return of_shared(size, size, layout)
    if name not in _KNOWN:
        return []
    arguments: dict[str, Value] = {"root": result.root or 0} if name == "broadcast" else {"op": result.op or "sum"}
    spec = Spec(collective=name, dtype="uint8", size_bytes=size, layout=layout, arguments=arguments)
    return collectives.get(name).needs(spec)


_KNOWN = ("all_to_all", "all_reduce", "reduce_scatter", "broadcast", "sendrecv")
