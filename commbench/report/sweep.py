"""The page of sweeps: bandwidth and time, who is fastest where, pairs of ranks, traffic, and all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commbench.analysis import bounds, ratios, so_far
from commbench.analysis.bounds import Told
from commbench.analysis.stragglers.examine import examine, without_repeats
from commbench.analysis.stragglers.search import MIN_EFFECT
from commbench.output.answer import slow, words
from commbench.output.answer.claims import Answer, FasterRange
from commbench.output.answer.sweep import answer
from commbench.output.combine import combine
from commbench.output.stragglers import evidence as evidence_of
from commbench.plots import pairs
from commbench.plots.settings import FIGURE_KEYS
from commbench.report import machines
from commbench.report.curve_charts import curve_charts
from commbench.report.map_charts import crossover_charts, pair_charts, traffic_charts
from commbench.report.page import (
    Block,
    CommandLine,
    PageChart,
    PageReport,
    PageSection,
    Paragraph,
)
from commbench.report.rows_table import table
from commbench.run_folder import RunFolder
from commbench.sweep import session

if TYPE_CHECKING:
    pass

_MOST_NAMES = 3  # in a headline
# Columns of the table of rows, and their names there.


def report(paths: Sequence[Path], told: Told, note: Callable[[str], None]) -> PageReport:
    """Return the page of run folders, with files of other programs beside them. Raises `CommbenchError`."""
    folders = [RunFolder.open(path) for path in paths if path.is_dir()]
    runs = combine(paths, told, FIGURE_KEYS, note)
    made = PageReport(kind="sweep", name=", ".join(runs.sources), answer=(), about=machines.about(runs.about))
    matrices = list(runs.about.get("pairs") or ())
    answers = {folder.run_id: _answer(folder, told) for folder in folders}
    if matrices:
        stragglers, evidence = _slow(folders)
        answers = {"": stragglers, **answers}
        made.mood = "bad" if evidence else ""
        if evidence:
            made.sections.append(PageSection(title="Who stands out", blocks=evidence))
    named = len(folders) > 1
    made.answer = [
        f"{run}: {text}" if named and run else text
        for run, of in answers.items()
        for text in _sentences(of)
        if not (matrices and text.startswith("pairs "))  # what a round of pairs took says nothing
    ]
    made.answer = made.answer or ["results of other programs"]
    if answers and (matrices or not named):
        first = next(iter(answers.values()))
        made.next, made.command = first.step, first.command
    if runs.about.get("partial"):
        made.mood = "warn"
    drawn = pairs.rows_without(runs.rows)
    everything: list[tuple[str, Sequence[PageChart]]] = [
        ("Pairs of ranks", pair_charts(matrices)),
        ("Bandwidth and time", curve_charts(drawn, runs.about) if len(drawn) else []),
        ("Who is fastest where", crossover_charts(drawn)),
        ("What is sent over which links", traffic_charts(drawn)),
    ]
    made.sections += [PageSection(title=title, blocks=blocks) for title, blocks in everything if blocks]
    made.sections.append(PageSection(title="All rows", blocks=[table(runs.rows)]))
    for folder in folders:
        made.sections += machines.sections(folder, named=named)
    made.sections.append(
        PageSection(title="Do it again", blocks=[*(machines.command(folder) for folder in folders), *_again(paths)])
    )
    return made


def _slow(folders: Sequence[RunFolder]) -> tuple[Answer, list[Block]]:
    """Return who is slow, as `commbench stragglers` says it, and the evidence; [] where nobody is."""
    parts = examine(folders, MIN_EFFECT)
    named = without_repeats(parts)
    blocks: list[Block] = []
    for part, straggler in named:
        ratio = words.ratio(straggler.ratio, straggler.low, straggler.high)
        blocks.append(Paragraph(text=f"{straggler.kind}: {straggler.name} takes {ratio} as long as its like"))
        blocks += [Paragraph(text=line.strip(), small=True) for line in evidence_of(straggler, part)]
    return slow.answer(parts, named, MIN_EFFECT, folders[0].read_json("run.json")), blocks


def _sentences(of: Answer) -> list[str]:
    """Return an answer with the shortest form of its claims first, and each claim a sentence of its own."""
    if not of.claims:
        return list(of.sentences)
    wheres = list(dict.fromkeys(claim.where for claim in of.claims))
    rest = [text for text in of.sentences if not text.startswith(tuple(f"{where}: " for where in wheres))]
    several = len(wheres) > 1
    claims = [f"{claim.where}: {claim}" if several else str(claim) for claim in of.claims]
    return [*([_headline(of.claims)] if len(claims) > 1 else []), *claims, *([] if several else wheres), *rest]


def _headline(claims: Sequence[FasterRange]) -> str:
    """Return `2d_intra_first and bruck are 1.20x to 4.59x as fast as direct from 4 KiB to 1 MiB`."""
    won = [claim for claim in claims if not claim.is_default] or list(claims)
    names = list(dict.fromkeys(claim.faster for claim in won))
    shown = words.listed(names[:_MOST_NAMES] + (["others"] if len(names) > _MOST_NAMES else []))
    factors = words.ratios([proof.factor for claim in won for proof in claim.proofs], None, None)
    thans = list(dict.fromkeys(claim.than for claim in won))
    sizes = sorted({size for claim in won for size in claim.sizes})
    than = thans[0] if len(thans) == 1 else "the default"
    return f"{shown} {'is' if len(names) == 1 else 'are'} {factors} as fast as {than} {words.sizes(sizes)}"


def _again(paths: Sequence[Path]) -> list[CommandLine]:
    words = [str(path) for path in paths]
    return [CommandLine(text=machines.typed(["commbench", "report", *words, "--out", "page.html"]), label="this page")]


def _answer(folder: RunFolder, told: Told) -> Answer:
    known = so_far.of_run(folder)
    rows = list(bounds.of_rows(folder, known.rows, told.rates).values())
    meta = {
        **folder.read_json("run.json"),
        "folder": str(folder.path),
        "planned": len(folder.plan()),
        "numa_nodes": session.numa_nodes(folder),
        "partial": known.partial,
    }
    return answer(rows, ratios.of_run(folder, rows), meta)
