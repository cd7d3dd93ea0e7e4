"""The verdict of a check, from its run folder alone: what was looked at, who is named, and what nobody can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from commbench import stats
from commbench.analysis import so_far
from commbench.analysis.pair_matrices import Matrix
from commbench.analysis.stragglers.examine import Examined, examine, without_repeats
from commbench.analysis.stragglers.search import MIN_EFFECT, Straggler
from commbench.analysis.summary import Samples
from commbench.check import HealthVerdict, differences, node_facts, plan
from commbench.check.differences import NodeFacts
from commbench.check.named import Named
from commbench.check.node_facts import HostFacts
from commbench.check.rates import rate_factor
from commbench.doctor.load import much
from commbench.errors import UsageError
from commbench.output.answer import words, yardstick
from commbench.output.stragglers import evidence
from commbench.records import Case, Row, Status, network_note
from commbench.run_folder import RunFolder
from commbench.stats import LAUNCHES_FOR_INTERVAL, Floats, Ratio
from commbench.units import format_size

OK, NOTE, BAD, UNKNOWN = "ok", "note", "bad", "unknown"
_LEAST_OF_BOUND = 0.25  # of an all-to-all at its largest size, below which all links alike are slow
_BROKEN = (Status.WRONG_RESULT, Status.TIMEOUT, Status.DECLARATION_MISMATCH)
_SETTINGS = ("MIG", "persistence", "clocks", "power limit", "GPUs")  # what doctor says of GPUs that are not ill
_MOST_NAMED = 3  # processes in evidence
_MOST_SAID = 160  # letters of somebody else's reason


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """One thing that was looked at: ok, note, bad or unknown, and what was seen."""

    name: str
    status: str
    text: str


@dataclass(slots=True, kw_only=True)
class HealthReport:
    """What a check has found."""

    what: str  # the set-up in words
    parts: list[CheckedPart] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)  # why nobody can tell
    differs: list[str] = field(default_factory=list)  # between nodes
    limits: list[str] = field(default_factory=list)  # of what was said
    hosts: list[HostFacts] = field(default_factory=list)
    launches: int = 0
    noise: Ratio | None = None  # of the same call against itself

    @property
    def verdict(self) -> HealthVerdict:
        if self.named:
            return HealthVerdict.NOT_HEALTHY
        return HealthVerdict.CANNOT_TELL if self.doubts else HealthVerdict.HEALTHY

    def add(self, name: str, status: str, text: str) -> None:
        self.parts.append(CheckedPart(name, status, text))


def judge(folder: RunFolder, machines: Mapping[int, Mapping[str, Any]] | None = None, *, effect: float = MIN_EFFECT
          ) -> HealthReport:  # fmt: skip
    """Return what a run says. machines: recorded ones that stand for nodes. Raises `CommbenchError`."""
    cases = [item.case for item in folder.plan() if not item.skip]
    setup = cases[0].setup
    report = HealthReport(what=str(setup))
    joined = bool(folder.read_json("run.json")["joined"])
    report.hosts = node_facts.read(folder, setup.layout)
    rows = so_far.of_run(folder).rows
    _hosts(report)
    _nodes(report, machines or {}, setup.layout.nodes)
    _cases(report, rows)
    _pairs(report, folder, effect, joined=joined)
    _bound(report, [row for row in rows.values() if row.collective == plan.ALL_TO_ALL])
    _noise(report, folder, cases, effect, joined=joined)
    between = {row.fabric for row in rows.values() if row.fabric}
    report.limits += filter(None, map(network_note, sorted(between)))
    return report


def _hosts(report: HealthReport) -> None:
    """Name what doctor finds to be ill, and who else uses CPUs; keep the rest of its warnings as notes."""
    warnings = 0
    for host in report.hosts:
        where = _where(host, report.hosts)
        for one in filter(node_facts.bad, host.doctor):
            if one["section"] != "GPUs" or one["name"] in _SETTINGS:
                warnings += 1
                report.add("doctor", NOTE, f"{where}: {one['name']}: {one['value']}")
                continue
            report.add("doctor", BAD, f"{where}: {one['name']}: {one['value']}")
            report.named.append(
                Named(kind="hardware", name=where, says=f"has GPUs in trouble ({one['name']}): {one['value']}",
                      about={"nodes": host.nodes}, evidence=tuple(filter(None, (one["why"], one["do"]))))
            )  # fmt: skip
        if busy := _busy(host, where):
            report.named.append(busy)
            report.add("CPUs", BAD, busy.sentence)
    known = [host for host in report.hosts if host.machine or host.doctor]
    if not known:
        report.add("doctor", UNKNOWN, "no host has said anything")
    elif not any(part.name == "doctor" for part in report.parts):
        report.add("doctor", OK, f"nothing to warn of on {words.count(len(known), 'host')}")
    looks = [look for host in report.hosts for look in host.looks]
    if looks and not any(part.name == "CPUs" for part in report.parts):
        some = sum(look["much"] for look in looks)
        text = f"no other process stays on them; others came and went in {some} of {words.count(len(looks), 'look')}"
        report.add("CPUs", NOTE if 2 * some > len(looks) else OK, text)


def _where(host: HostFacts, hosts: Sequence[HostFacts]) -> str:
    """`host gpu7 (node 3)`."""
    if len(hosts) == 1:
        return f"host {host.host}"
    return f"host {host.host} (node{'s' if len(host.nodes) > 1 else ''} {words.listed(list(map(str, host.nodes)))})"


def _busy(host: HostFacts, where: str) -> Named | None:
    """Return that others use a host's CPUs: processes that are there in most looks, and take enough together."""
    seen: dict[tuple[int, str], list[float]] = {}
    for process in (process for look in host.looks for process in look["busiest"]):
        seen.setdefault((process["pid"], process["name"]), []).append(process["cpus"])
    staying = {who: shares for who, shares in seen.items() if 2 * len(shares) > len(host.looks)}
    taken = sorted(
        sum(process["cpus"] for process in look["busiest"] if (process["pid"], process["name"]) in staying)
        for look in host.looks
    )
    if not staying or not much(usual := float(np.median(taken)), cpus := host.looks[0]["cpus"]):
        return None
    slower = [1 + share / cpus for share in taken if share]  # of a rank that shares its CPU fairly with them
    looks = words.count(len(host.looks), "look")
    most = sorted(staying.items(), key=lambda item: -sum(item[1]))
    used = [f"{name} (pid {pid}) uses {np.median(of):.2f} CPUs, in {len(of)} of {looks}" for (pid, name), of in most]
    (pid, name), _ = most[0]
    more = f" and {len(most) - 1} more" if len(most) > 1 else ""
    return Named(
        kind="cpu",
        name=where,
        says=f"has {usual:.1f} of {cpus} CPUs taken by {name} (pid {pid}){more}; sharing them makes ranks {{}} slow",
        ratio=float(np.median(slower)),
        low=slower[0],
        high=slower[-1],
        interval_of="looks",
        about={"nodes": host.nodes},
        evidence=tuple(used[:_MOST_NAMED]),
    )


def _nodes(report: HealthReport, machines: Mapping[int, Mapping[str, Any]], count: int) -> None:
    """Compare the nodes. Of those that one host stands for there is nothing to compare, unless they are recorded."""
    facts = []
    for node in range(count):
        host = next((one for one in report.hosts if node in one.nodes and one.machine), None)
        if node in machines:
            facts.append(NodeFacts(node=node, machine=machines[node], metadata={}))
        elif host is not None and len(host.nodes) == 1:
            facts.append(NodeFacts(node=node, machine=host.machine, metadata=host.metadata))
    if len(facts) < 2:
        if count > 1:
            report.add("nodes", NOTE, "one machine stands for all of them: nothing to compare")
        return
    less = differences.named(facts)
    report.named += less
    report.differs = differences.said(facts)
    for one in less:
        report.add("nodes", BAD, one.sentence)
    for text in report.differs:
        report.add("nodes", NOTE, text)
    if not less and not report.differs:
        report.add("nodes", OK, f"{len(facts)} nodes are alike: GPUs, network cards, CPUs, NUMA, kernel, software")


def _cases(report: HealthReport, rows: Mapping[str, Row]) -> None:
    """Name what gave wrong results or hung; what failed otherwise leaves the question open."""
    failed = [row for row in rows.values() if row.status not in (Status.OK, Status.SKIPPED)]
    broken = [row for row in failed if row.status in _BROKEN]
    if not rows or not any(row.status is Status.OK for row in rows.values()):
        report.doubts.append("nothing was measured" + (f": {_reason(failed)}" if failed else ""))
    if not failed:
        ok = sum(row.status is Status.OK for row in rows.values())
        report.add("results", OK, f"{words.count(ok, 'case')} of right results") if ok else None
        return
    kinds = ", ".join(dict.fromkeys(row.status.value for row in failed))
    text = f"{len(failed)} of {words.count(len(rows), 'case')} failed ({kinds}): {_reason(broken or failed)}"
    report.add("results", BAD if broken else UNKNOWN, text)
    if broken:
        first = broken[0]
        says = f"ended with {first.status.value} in {words.count(len(broken), 'case')}: {_reason(broken)}"
        report.named.append(Named(kind="case", name=f"{first.what} at {format_size(first.size_bytes)}", says=says))
    elif not report.doubts:
        report.doubts.append(text)


def _reason(rows: Sequence[Row]) -> str:
    return next((row.reason for row in rows if row.reason), "no reason is known")[:_MOST_SAID]


def _pairs(report: HealthReport, folder: RunFolder, effect: float, *, joined: bool) -> None:
    try:
        parts = examine([folder], effect)
    except UsageError as error:
        report.add("pairs", UNKNOWN, f"{error}")
        return
    matrices = [part.matrix for part in parts if part.matrix is not None]
    if not matrices:
        report.add("pairs", UNKNOWN, "no pair of ranks was measured")
        return
    report.launches = max(part.launches for part in parts)
    slow = without_repeats(parts)
    for part, straggler in slow:
        report.named.append(_straggler(part, straggler, matrices, slow, joined=joined))
        report.add("pairs", BAD, report.named[-1].sentence)
    if slow:
        return
    doubtful = [part.unclear for part in parts if part.unclear is not None]
    if doubtful:
        worst = max(doubtful, key=lambda one: one.ratio)
        text = f"{worst.name} took {worst.ratio:.2f}x as long as its like, in too few launches to tell"
        report.add("pairs", UNKNOWN, text)
        report.doubts.append(text)
        return
    ways = sum(int(np.isfinite(matrix.median_us).sum()) for matrix in matrices[-1:])
    count = sum(part.tests for part in parts)
    report.add(
        "pairs", OK, f"{ways} ways between ranks, none of {count} candidates takes {effect:g}x as long as its like"
    )
    few = report.launches
    if few < LAUNCHES_FOR_INTERVAL:
        report.doubts.append(stats.missing_launches(few))
    if matrices[0].layout.ranks < 3:
        report.limits.append("two ranks have one way each: only the bound can say whether it is slow")
    elif matrices[0].layout.nodes == 2:
        report.limits.append("of two nodes the whole link between them can only be compared with the bound")


def _straggler(
    part: Examined, straggler: Straggler, matrices: Sequence[Matrix], slow: Sequence[tuple[Examined, Straggler]],
    *, joined: bool,
) -> Named:  # fmt: skip
    """Return a slow one with its evidence; a link by its rate, where both sizes tell it."""
    ratio, low, high, of = straggler.ratio, straggler.low, straggler.high, straggler.interval_of
    text = evidence(straggler, part)
    if straggler.kind == "link" and len(matrices) > 1:
        others = [one for _, one in slow if one is not straggler]
        factor = rate_factor(matrices[0], matrices[-1], straggler, others)
        if factor is not None and factor.interval is not None and factor.value >= ratio:
            size, bytes_alone = format_size(part.size_bytes or 0), words.ratio(factor.value, factor.low, factor.high)
            text.append(f"messages of {size} take {words.ratio(ratio, low, high)} as long, bytes alone {bytes_alone}")
            ratio, (low, high, of) = factor.value, factor.interval
    if joined and of == "launches":
        of = "repeats"
        text = [line.replace("launches; chance", "repeats of one launch; chance") for line in text]
    return Named(
        kind=straggler.kind, name=straggler.name.replace(",", ""), says="is {} slow", ratio=ratio, low=low, high=high,
        interval_of=of, about=straggler.about, evidence=tuple(text),
    )  # fmt: skip


def _bound(report: HealthReport, rows: Sequence[Row]) -> None:
    known = [row for row in rows if row.status is Status.OK and row.busbw_gbps]
    if not known:
        return
    row = max(known, key=lambda one: (one.bound_fraction or 0.0, one.busbw_gbps or 0.0))
    size = format_size(row.size_bytes)
    if not row.bound_gbps or row.bound_fraction is None:
        reached = f"{row.busbw_gbps:.3g} GB/s at {size}"
        report.add("all-to-all", NOTE, f"{reached}; no rate of a link is known to compare it with: link_rate.inter=")
        if row.ranks < 3:
            report.doubts.append("two ranks, and no rate of a link is known: there is nothing to compare with")
        return
    text = f"{yardstick.of_bound(row.busbw_gbps or 0.0, row.bound_gbps, row.bound_kind)} at {size}"
    if row.bound_fraction >= _LEAST_OF_BOUND:
        report.add("all-to-all", OK, text)
        return
    report.add("all-to-all", NOTE if report.named else BAD, text)
    if not report.named:
        report.named.append(
            Named(kind="bound", name="the all-to-all of all ranks", says=f"reaches {text}: {{}} slow",
                  ratio=1 / row.bound_fraction, evidence=("nobody stands out: all are slow alike",))
        )  # fmt: skip


def _noise(report: HealthReport, folder: RunFolder, cases: Sequence[Case], effect: float, *, joined: bool) -> None:
    """Compare the same call with itself: what this machine can tell at all."""
    first = min((case.seed for case in cases), default=0)
    arms: tuple[dict[tuple[int, int], Floats], ...] = ({}, {})
    samples = Samples(folder)
    known = {case.case_id: case for case in cases if case.collective == plan.ALL_TO_ALL}
    for one in folder.measurements():
        case = known.get(one.case_id)
        if case is not None and one.status is Status.OK and samples.has(one):
            which = plan.arm(case, first)
            arms[which][one.launch, (case.seed - first) // 2] = samples.slowest_us(one)
    both = sorted(arms[0].keys() & arms[1].keys())
    if not both:
        report.add("noise", UNKNOWN, "the same call was not measured twice")
        return
    logs = np.array([math.log(float(np.median(arms[0][key])) / float(np.median(arms[1][key]))) for key in both])
    report.noise = found = stats.paired_ratio(logs)
    unit = "repeat" if joined else "launch"
    ratio = words.ratio(found.value, found.low, found.high)
    text = f"the same all-to-all twice in {words.count(len(both), unit)}: {ratio}"
    if found.low is None or found.high is None:
        report.add("noise", UNKNOWN, text)
        if (missing := stats.missing_launches(len(both))) not in report.doubts:
            report.doubts.append(missing)
    elif math.sqrt(found.high / found.low) > effect:  # half of its width; where it lies is chance
        report.add("noise", UNKNOWN, text)
        report.doubts.append(f"{text}: too noisy to see {effect:g}x")
    else:
        report.add("noise", OK, text)
