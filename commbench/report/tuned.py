"""The page of a tuning, or of a profile: what is gained where, the bandwidth with it, the choices, what was refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commbench.errors import UsageError
from commbench.output.answer.claims import Answer
from commbench.output.answer.tuned import answer
from commbench.plots import before_after, gains, style
from commbench.plots.before_after import BandwidthPanel, Bounds
from commbench.profile import Choice, Profile
from commbench.profile import file as profile_file
from commbench.records import Status
from commbench.report import charts
from commbench.report.machines import typed
from commbench.report.page import (
    CommandLine,
    LegendEntry,
    PageChart,
    PageColumn,
    PageReport,
    PageSection,
    PageTable,
    rounded,
)
from commbench.run_folder import RunFolder
from commbench.tune import describe, journal
from commbench.units import format_size

_BEFORE, _AFTER, _BOUND, _KEPT = "#777777", "#0072B2", "#7d8590", "#9aa1ab"


def report(path: Path) -> PageReport:
    """Return the page of a profile, or of the folder of a tuning. Raises `CommbenchError`."""
    folder = path if path.is_dir() else path.parent
    file = path / profile_file.NAME if path.is_dir() else path
    if path.is_dir() and journal.is_one(path) and not file.is_file():
        raise UsageError(f"the tuning {str(path)!r} has no profile yet", hint=f"commbench tune --resume {path}")
    profile = profile_file.load(file)
    found = answer(profile, describe.next_step(file, None))
    name = path.name if path.is_dir() else file.name
    made = PageReport(
        kind="tuning",
        name=name,
        answer=_said(profile, found),
        next=found.step,
        command=found.command,
        mood="good" if found.claims else "",
        about=[
            *map(str, profile.scopes),
            profile.machine,
            profile.created[:16].replace("T", " "),
            f"commbench {profile.commbench_version}",
        ],
    )
    evidence = [(choice, one) for choice in profile.choices for one in choice.evidence]
    if evidence:
        made.sections.append(PageSection(title="What is gained", blocks=[_gains(profile)]))
        panels = before_after.profile_panels(profile, bounds(profile, folder))
        made.sections.append(
            PageSection(title="Bandwidth, without it and with it", blocks=[_bandwidth(panel) for panel in panels])
        )
        made.sections.append(PageSection(title="Evidence", blocks=[_evidence(profile)]))
    made.sections.append(PageSection(title="Choices", blocks=[_choices(profile)], folded=bool(evidence)))
    if profile.refused:
        made.sections.append(
            PageSection(
                title="What was not taken, and why",
                folded=True,
                blocks=[
                    PageTable(
                        columns=[
                            PageColumn(name="collective", values=[one.collective for one in profile.refused]),
                            PageColumn(name="what", values=[one.label for one in profile.refused]),
                            PageColumn(
                                name="sizes", values=[", ".join(map(format_size, one.sizes)) for one in profile.refused]
                            ),
                            PageColumn(name="why", values=[one.why for one in profile.refused]),
                            PageColumn(name="reason", values=[one.reason for one in profile.refused]),
                        ],
                        name="candidates",
                    )
                ],
            )
        )
    made.sections.append(
        PageSection(
            title="Use it, or do it again",
            blocks=[
                CommandLine(text=f"commbench ab --profile {typed([str(file)])} -- PROGRAM", label="what it is worth"),
                CommandLine(text=f"commbench exec --profile {typed([str(file)])} -- PROGRAM", label="use it"),
                CommandLine(text=typed(profile.command), label="tune again"),
            ],
        )
    )
    return made


def _said(profile: Profile, found: Answer) -> list[str]:
    """Return what is gained, a sentence for each range of sizes; where nothing is, what the tuning said."""
    scopes = tuple(f"{scope}: " for scope in profile.scopes)
    rest = [text for text in found.sentences if not (found.claims and text.startswith(scopes))]
    return [gains.conclusion(profile), *(f"{claim.where}: {claim}" for claim in found.claims), *rest]


def bounds(profile: Profile, folder: Path) -> Bounds:
    """Return what the links need at the least, as the stages beside a profile say."""
    found: dict[tuple[str, str, int], float] = {}
    for run in {one.run for choice in profile.choices for one in choice.evidence}:
        if Path(run).name == run and (folder / run / "run.json").is_file():
            for row in RunFolder.open(folder / run).rows().values():
                if row.status is Status.OK and row.bound_us:
                    found[run, row.collective, row.size_bytes] = row.bound_us
    return found


def _gains(profile: Profile) -> PageChart:
    curves: dict[str, list[Choice]] = {}
    for choice in profile.choices:
        asked = " ".join(f"{key}={value}" for key, value in choice.arguments.items())
        curves.setdefault(
            f"{choice.collective} {asked}{' in a CUDA graph' if choice.captured else ''}".strip(), []
        ).append(choice)
    points: list[dict[str, Any]] = []
    legend: dict[str, LegendEntry] = {}
    for curve, choices in curves.items():
        for choice in sorted(choices, key=lambda one: one.min_bytes):
            for one in choice.evidence:
                label = gains.choice_label(choice, one)
                label = label if len(curves) == 1 else f"{curve}: {label}"
                colour = style.algorithm_colour(choice.algorithm) if one.confirmed else _KEPT
                legend.setdefault(label, LegendEntry(label=label, colour=colour))
                ends = {"low": one.low, "high": one.high} if one.low is not None and one.high is not None else {}
                times = f"{one.default_us:.4g} us to {one.chosen_us:.4g} us"
                text = f"{one.ratio:.3f}x at {format_size(one.size_bytes)}: {times}"
                points.append({"series": label, "x": one.size_bytes, "y": one.ratio, "text": text, **ends})
    spec = charts.lines(points, list(legend.values()), "default / choice, above 1: faster", rule=1.0)
    says = (
        "The default's time over the choice's; bars are 95 % intervals. Grey: too little to count, the default is kept."
    )
    return PageChart(title=gains.conclusion(profile), panels=[spec], legend=list(legend.values()), says=says)


def _bandwidth(panel: BandwidthPanel) -> PageChart:
    legend = [
        LegendEntry(label="default", colour=_BEFORE, dash=(5, 3)),
        LegendEntry(label="with the profile", colour=_AFTER),
    ]
    points = []
    for line in panel.lines:
        for one in line.points:
            size = format_size(one.size_bytes)
            points.append(
                {"series": "default", "x": one.size_bytes, "y": one.before, "text": f"{one.before:.4g} GB/s at {size}"}
            )
            ends = (
                {}
                if one.low is None or one.high is None
                else {"low": one.before * one.low, "high": one.before * one.high}
            )
            text = f"{one.after:.4g} GB/s at {size}: {one.after / one.before:.2f}x"
            points.append({"series": "with the profile", "x": one.size_bytes, "y": one.after, "text": text, **ends})
    if panel.bound:
        legend.append(LegendEntry(label="bound: what the links allow", colour=_BOUND, dash=(2, 3)))
        points += [
            {"series": legend[-1].label, "x": size, "y": gbps, "bare": True} for size, gbps in panel.bound.items()
        ]
    return PageChart(
        title=str(panel),
        subtitle=panel.name,
        legend=legend,
        panels=[charts.lines(points, legend, style.BUS if panel.bus else style.ALGORITHM)],
    )


def _evidence(profile: Profile) -> PageTable:
    found = [(choice, one) for choice in profile.choices for one in choice.evidence]
    sizes: Mapping[str, float] = {format_size(one.size_bytes): float(one.size_bytes) for _, one in found}
    return PageTable(
        columns=[
            PageColumn(name="collective", values=[choice.collective for choice, _ in found]),
            PageColumn(name="size", values=[format_size(one.size_bytes) for _, one in found], keys=sizes),
            PageColumn(name="choice", values=[choice.label for choice, _ in found]),
            PageColumn(name="buffers", values=[choice.buffers for choice, _ in found]),
            PageColumn(name="default", values=[one.default for _, one in found]),
            PageColumn(name="default_us", values=[rounded(one.default_us) for _, one in found]),
            PageColumn(name="choice_us", values=[rounded(one.chosen_us) for _, one in found]),
            PageColumn(name="gain", values=[rounded(one.ratio) for _, one in found]),
            PageColumn(name="low", values=[rounded(one.low) for _, one in found]),
            PageColumn(name="high", values=[rounded(one.high) for _, one in found]),
            PageColumn(name="pairs", values=[one.pairs for _, one in found]),
            PageColumn(name="verdict", values=[str(one.verdict) for _, one in found]),
        ],
        name="decisions",
    )


def _choices(profile: Profile) -> PageTable:
    choices = profile.choices
    ends = ["" if one.max_bytes is None else format_size(one.max_bytes) for one in choices]
    return PageTable(
        columns=[
            PageColumn(name="collective", values=[one.collective for one in choices]),
            PageColumn(name="where", values=[str(profile.scope(one.scope)) for one in choices]),
            PageColumn(
                name="from",
                values=[format_size(one.min_bytes) for one in choices],
                keys={format_size(one.min_bytes): float(one.min_bytes) for one in choices},
            ),
            PageColumn(
                name="to",
                values=[end or "any" for end in ends],
                keys={
                    format_size(one.max_bytes) if one.max_bytes is not None else "any": float("1e30")
                    if one.max_bytes is None
                    else float(one.max_bytes)
                    for one in choices
                },
            ),
            PageColumn(name="choice", values=[one.label for one in choices]),
            PageColumn(name="buffers", values=[one.buffers for one in choices]),
        ],
        name="choices",
    )
