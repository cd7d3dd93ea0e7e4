"""The page of a check: the verdict, who is named and why, what was looked at, the nodes, and every pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commbench.check import HealthVerdict, kept
from commbench.errors import UsageError
from commbench.report import machines
from commbench.report.map_charts import matrices_of, pair_charts
from commbench.report.page import (
    Block,
    CommandLine,
    PageColumn,
    PageReport,
    PageSection,
    PageTable,
    Paragraph,
)
from commbench.report.rows_table import table
from commbench.run_folder import RunFolder

_HEAD = {
    HealthVerdict.HEALTHY: "Healthy",
    HealthVerdict.NOT_HEALTHY: "Not healthy",
    HealthVerdict.CANNOT_TELL: "Cannot tell",
}
_MOOD = {HealthVerdict.HEALTHY: "good", HealthVerdict.NOT_HEALTHY: "bad", HealthVerdict.CANNOT_TELL: "warn"}


def report(path: Path) -> PageReport:
    """Return the page of a check's folder. Raises `CommbenchError`."""
    folder = RunFolder.open(path)
    asked, spent_s, found = kept.read(folder)
    if not found:
        raise UsageError(f"{path} is a check without a verdict yet", hint=f"commbench check --resume {path}")
    verdict = HealthVerdict(found["verdict"])
    named, parts = list(found["named"]), list(found["parts"])
    sentences = [str(one["sentence"]) for one in named] or list(map(str, found["doubts"]))
    if not sentences:
        sentences = [
            str(one["text"]) for one in parts if one["status"] == "ok" and one["name"] in ("pairs", "all-to-all")
        ]
    made = PageReport(
        kind="check",
        name=folder.run_id,
        answer=[*(sentences or ["nothing stands out"]), *map(str, found["limits"])],
        verdict=_HEAD[verdict],
        mood=_MOOD[verdict],
        about=machines.about(folder.read_json("run.json")),
    )
    if named:
        made.sections.append(PageSection(title="Who is named, and why", blocks=_named(named)))
    made.sections.append(
        PageSection(
            title="What was looked at",
            blocks=[
                PageTable(
                    columns=[
                        PageColumn(name="part", values=[str(one["name"]) for one in parts]),
                        PageColumn(name="result", values=[str(one["status"]) for one in parts]),
                        PageColumn(name="what was seen", values=[str(one["text"]) for one in parts]),
                    ],
                    name="parts",
                )
            ],
        )
    )
    made.sections += _hosts(found)
    if charts := pair_charts(matrices_of(folder)):
        made.sections.append(PageSection(title="Pairs of ranks", blocks=charts))
    rows = list(folder.rows().values())
    if rows:
        from commbench.output import parquet

        made.sections.append(
            PageSection(title="All rows", blocks=[table(parquet.frame(rows, folder.run_id))], folded=True)
        )
    made.sections += machines.sections(folder, named=False)
    later = CommandLine(
        text=machines.typed(["commbench", "check", "--against", str(path)]), label="has it become slower since?"
    )
    made.sections.append(
        PageSection(
            title="Do it again",
            blocks=[
                Paragraph(text=f"{found['launches']} launches, {spent_s:.0f} s of a budget of {asked.budget_s:.0f} s"),
                machines.command(folder),
                later,
            ],
        )
    )
    return made


def _named(named: list[dict[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for one in named:
        blocks.append(Paragraph(text=f"{one['kind']}: {one['sentence']}"))
        blocks += [Paragraph(text=str(text), small=True) for text in one.get("evidence") or []]
    return blocks


def _hosts(found: dict[str, Any]) -> list[PageSection]:
    """Return what doctor says of each host, and what differs between nodes."""
    made = []
    hosts = [one for one in found["hosts"] if isinstance(one, dict)]
    lines = [(str(host.get("host", "")), one) for host in hosts for one in host.get("doctor") or []]
    if lines:
        made.append(
            PageSection(
                title="Doctor",
                folded=True,
                blocks=[
                    PageTable(
                        columns=[
                            PageColumn(name="host", values=[host for host, _ in lines]),
                            PageColumn(name="section", values=[str(one.get("section", "")) for _, one in lines]),
                            PageColumn(name="check", values=[str(one.get("name", "")) for _, one in lines]),
                            PageColumn(name="result", values=[str(one.get("status", "")) for _, one in lines]),
                            PageColumn(name="found", values=[str(one.get("value", "")) for _, one in lines]),
                            PageColumn(
                                name="what to do",
                                values=[str(one.get("do") or one.get("why") or "") for _, one in lines],
                            ),
                        ],
                        name="checks",
                    )
                ],
            )
        )
    if found["differs"]:
        made.append(
            PageSection(
                title="What differs between nodes", blocks=[Paragraph(text=str(text)) for text in found["differs"]]
            )
        )
    return made
