"""The page of an A/B, of trainings or of any program: the ratio, both arms round by round, what was run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from commbench.ab import launches as programs
from commbench.ab.pairs import ARMS
from commbench.output.answer import arms
from commbench.plots.ab import ARM_COLOURS
from commbench.records import network_note
from commbench.report import charts, machines
from commbench.report.page import (
    CommandLine,
    FactList,
    LegendEntry,
    PageChart,
    PageColumn,
    PageReport,
    PageSection,
    PageTable,
)
from commbench.stats import PAIRS_FOR_CLAIM, Verdict
from commbench.train import ab
from commbench.train.ab_expected import from_facts

_MOOD = {Verdict.FASTER: "good", Verdict.SLOWER: "bad"}
_LEGEND = [LegendEntry(label=arm, colour=ARM_COLOURS[arm]) for arm in ARMS]


def report(path: Path) -> PageReport:
    """Return the page of the folder of an A/B. Raises `CommbenchError`."""
    return _program(path) if programs.is_one(path) else _training(path)


def _program(path: Path) -> PageReport:
    about, made = programs.read_answer(path)
    unit = f" ({about['unit']})" if about["unit"] else ""
    rows = [("measured", about["ratio"], about["low"], about["high"])]
    if control := about["control"]:
        rows.append(("control: one arm against itself", control["ratio"], control["low"], control["high"]))
    found = PageReport(
        kind="A/B",
        name=path.resolve().name,
        answer=[about["answer"]],
        next=str(about.get("next") or ""),
        mood=_MOOD.get(Verdict(about["verdict"]), ""),
        about=machines.about(about),
    )
    found.sections = _pictures(
        rows, made, lambda one: float(one.value), f"{about['compared']}{unit}", str(about["answer"])
    )
    lines = sorted(made, key=lambda one: (one.round, one.arm))
    columns = [
        PageColumn(name=str(about["compared"]), values=[float(f"{one.value:.6g}") for one in lines]),
        PageColumn(name="steps", values=[one.steps for one in lines]),
        PageColumn(name="seconds", values=[float(f"{one.seconds:.4g}") for one in lines]),
        PageColumn(name="log", values=[one.log for one in lines]),
    ]
    found.sections.append(_launches(lines, columns))
    asked = about["request"]
    profiles = [f"--profile={one}" for one in asked["profiles"]]
    words = ["commbench", "ab", *profiles, *asked["words"], "--", *asked["program"]]
    found.sections.append(
        PageSection(title="Do it again", blocks=[CommandLine(text=machines.typed(list(map(str, words))))])
    )
    return found


def _training(path: Path) -> PageReport:
    launches, about, names = ab.read(path)
    outcome = ab.compare(launches)
    rows = [("measured", outcome.ratio, outcome.low, outcome.high)]
    if predicted := from_facts(about):
        rows.append(("predicted", predicted.value, predicted.low, predicted.high))
    title = arms.title(
        outcome.verdict, outcome.ratio, outcome.low, outcome.high, rounds=outcome.pairs, what="throughput"
    )
    said = [title, f"the arms differ in {names}"]
    said += [] if outcome.claim else [f"a claim of a gain takes {PAIRS_FOR_CLAIM} rounds, these are {outcome.pairs}"]
    said += [f"the {text}"] if (text := network_note(about.get("fabric", ""))) else []
    found = PageReport(
        kind="A/B",
        name=path.resolve().name,
        answer=said,
        mood=_MOOD.get(outcome.verdict, ""),
        about=machines.about(about),
    )
    found.sections = _pictures(
        rows, launches, lambda one: float(one.tokens_per_s), "tokens per second, median step", title
    )
    shares = [
        {"bar": arm, "series": arm, "x": 100 * outcome.exposed[arm], "text": f"{100 * outcome.exposed[arm]:.1f} %"}
        for arm in ARMS
    ]
    spec = charts.bars(shares, _LEGEND, "% of a step that waits for communication", order=ARMS)
    found.sections.append(
        PageSection(
            title="What waits",
            blocks=[
                PageChart(
                    title="Share of a step that waits for communication",
                    panels=[spec],
                    legend=_LEGEND,
                    says="Of the rank that waits longest.",
                ),
            ],
        )
    )
    lines = sorted(launches, key=lambda one: (one.round, one.arm))
    columns = [
        PageColumn(name="tokens/s", values=[float(f"{one.tokens_per_s:.6g}") for one in lines]),
        PageColumn(name="step_us", values=[float(f"{one.step_us:.6g}") for one in lines]),
        PageColumn(name="waits_us", values=[float(f"{one.exposed_us:.6g}") for one in lines]),
    ]
    found.sections.append(_launches(lines, columns))
    for arm in ARMS:
        facts = [(key, str(value)) for key, value in about["arms"][arm].items() if value is not None]
        found.sections.append(PageSection(title=f"Settings of the {arm}", blocks=[FactList(items=facts)], folded=True))
    words = list(map(str, about.get("command") or []))
    found.sections.append(PageSection(title="Do it again", blocks=[CommandLine(text=machines.typed(words))]))
    return found


def _launches(lines: Sequence[Any], columns: Sequence[PageColumn]) -> PageSection:
    """Return the table of launches: round, arm, and what was measured."""
    first = [
        PageColumn(name="round", values=[one.round + 1 for one in lines]),
        PageColumn(name="arm", values=[one.arm for one in lines]),
    ]
    return PageSection(title="Launches", blocks=[PageTable(columns=[*first, *columns], name="launches")])


def _pictures(
    rows: Sequence[tuple[str, float, float | None, float | None]],
    launches: Sequence[Any],
    value: Callable[[Any], float],
    label: str,
    title: str,
) -> list[PageSection]:
    points: list[Mapping[str, Any]] = [
        {
            "bar": name,
            "x": ratio,
            **({"low": low, "high": high} if low is not None and high is not None else {}),
            "text": f"{ratio:.3f}x" + (f" [{low:.3f}-{high:.3f}]" if low is not None and high is not None else ""),
        }
        for name, ratio, low, high in rows
    ]
    by_round = [
        {"series": one.arm, "x": one.round + 1, "y": value(one), "text": f"{value(one):.5g} in round {one.round + 1}"}
        for one in sorted(launches, key=lambda one: one.round)
    ]
    ratio = charts.intervals(
        points,
        "candidate / baseline, above 1: better",
        order=[name for name, *_ in rows],
        colour=ARM_COLOURS["candidate"],
    )
    lines = charts.lines(by_round, _LEGEND, label, of_sizes=False, x_title="round", log=False, height=240)
    return [
        PageSection(
            title="The ratio", blocks=[PageChart(title=title, panels=[ratio], says="Bars are 95 % intervals.")]
        ),
        PageSection(title="Round by round", blocks=[PageChart(title=label, panels=[lines], legend=_LEGEND)]),
    ]
