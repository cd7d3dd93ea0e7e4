"""`commbench compare`: is the second run faster or slower than the first, and by how much for certain?"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from commbench.analysis import compare
from commbench.analysis.bounds import Told
from commbench.analysis.compare import OUTCOMES, CaseComparison
from commbench.commands.options import check_picture
from commbench.console import stderr_console
from commbench.errors import UsageError
from commbench.links import parse_link_rates
from commbench.output import grid
from commbench.output.answer import words
from commbench.output.answer.compared import answer
from commbench.output.grid import AS_FITS, Column, TableStyle, folded, number
from commbench.records import network_note
from commbench.run_folder import RunFolder
from commbench.units import format_size


def run(
    first: Path, second: Path, *, threshold: float, allow_mismatch: bool, format_: str, plot: Path | None,
    columns: str = "", ranks: int | None = None, nodes: int | None = None, link_rate: Sequence[str] = (),
) -> int:  # fmt: skip
    """Return 1 if a case regressed by more than `threshold`, else 0. Raises `UsageError`."""
    check_picture(plot)
    look = TableStyle(columns=columns, markdown=format_ == "markdown")
    grid.check(columns, [column.name for column in table_columns(threshold)])
    told = Told(ranks=ranks, nodes=nodes, rates=parse_link_rates(link_rate))
    before, after = compare.load(first, told), compare.load(second, told)
    forbidding, others = compare.mismatches(before, after)
    if forbidding and not allow_mismatch:
        raise UsageError(
            f"these runs are of different machines: {'; '.join(forbidding)}",
            hint="--allow-mismatch compares them all the same",
        )
    comparisons = compare.compare(before, after)
    if not comparisons:
        why = compare.apart(before, after)
        raise UsageError(
            f"{first} and {second} have no case in common{f': {why}' if why else ''}",
            hint="a case is the same where collective, algorithm, parameters, transport, layout, size and settings are",
        )
    for read in (before, after):
        if read.note:
            stderr_console().print(f"{read.path}: {read.note}", markup=False)
    for text in [*forbidding, *others]:
        stderr_console().print(f"differs: {text}", markup=False)
    partial = [f"partial, {when}: {run.partial}" for when, run in (("before", before), ("after", after)) if run.partial]
    about = {} if second.is_file() else RunFolder.open(second).read_json("run.json")
    found = answer(comparisons, threshold, about).but(partial)
    if format_ == "json":
        for item in comparisons:
            line = {**dataclasses.asdict(item), "outcome": item.outcome, "regressed": item.regressed(threshold)}
            sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.write(json.dumps(found.as_dict()) + "\n")
        for text in partial:
            stderr_console().print(text, markup=False)
    else:
        sys.stdout.write(
            "".join(f"# {text}\n" for text in partial) + table(comparisons, first, second, threshold, look)
        )
        sys.stdout.write("\n".join(found.lines()) + "\n")
    if plot is not None:
        from commbench.plots import ratio

        try:
            ratio.draw(comparisons, plot, f"{first} / {second}", threshold)
        except OSError as error:
            raise UsageError(
                f"cannot write {str(plot)!r}: {error.strerror}", hint="choose a folder that is there, and yours"
            ) from error
        stderr_console().print(f"plot: {plot}", markup=False)
    return int(any(item.regressed(threshold) for item in comparisons))


_RATIO = (
    "ratio: time before / time after, above 1 the second is faster; 95 % interval: launches of each run resampled "
    "(samples where one has fewer than 6)"
)


def table_columns(threshold: float) -> list[Column[CaseComparison]]:
    return [
        Column(name="size", text=lambda item: format_size(item.size_bytes).replace(" ", "")),
        Column(name="algorithm", text=lambda item: item.label, left=True),
        Column(name="before_us", text=lambda item: number(item.before_us), goes=2),
        Column(name="after_us", text=lambda item: number(item.after_us), goes=2),
        Column(name="ratio", text=lambda item: words.ratio(item.ratio, item.low, item.high).partition(" ")[0]),
        Column(name="interval", heading="[low-high]", text=lambda item: words.interval(item.low, item.high).strip()),
        Column(name="of", text=lambda item: item.interval_of or "-", left=True, once=True, goes=3),
        Column(name="of_bound", text=_of_bound, goes=4),
        Column(name="outcome", left=True,
               text=lambda item: f"{item.outcome}{',regressed' if item.regressed(threshold) else ''}"),
    ]  # fmt: skip


def table(
    comparisons: Sequence[CaseComparison], first: Path, second: Path, threshold: float, look: TableStyle = AS_FITS
) -> str:
    """Return the cases of each set-up, smallest size first, and how many of what there are."""
    lines = [*folded(f"before: {first}"), *folded(f"after:  {second}")]
    lines += folded(_RATIO)
    if any(item.bound_us for item in comparisons):
        kinds = ", ".join(sorted({item.bound_kind for item in comparisons} - {""}))
        lines += folded(f"of_bound: how near the second comes to what its links allow{f' ({kinds})' if kinds else ''}")
    by_set_up: dict[str, list[CaseComparison]] = {}
    for item in comparisons:
        by_set_up.setdefault(item.set_up, []).append(item)
    for set_up, unsorted in by_set_up.items():
        members = sorted(unsorted, key=lambda item: item.size_bytes)
        laid = grid.grid(table_columns(threshold), members, look)
        lines += ["#", *folded(set_up)]
        lines += folded(f"note: {note}") if (note := network_note(members[0].fabric)) else []
        lines += [*itertools.chain(*map(folded, laid.notes)), *laid.framed(look)]
    counts = Counter(item.outcome for item in comparisons)
    worse = sum(item.regressed(threshold) for item in comparisons)
    counted = [f"{counts[outcome]} {outcome}" for outcome in dict.fromkeys(OUTCOMES.values())]
    lines += folded(
        f"{len(comparisons)} cases: {', '.join(counted)}; {worse} regressed by more than {100 * threshold:g} %"
    )
    judged = sum(item.p is not None for item in comparisons)
    if judged > 1:
        lines += folded(f"{judged} verdicts, corrected together: where nothing differs, any is false in 5 % at most")
    if any(item.p is None and item.low is not None for item in comparisons):
        lines += folded("the spread between launches is not in intervals of samples")
    return "\n".join(lines) + "\n"


def _of_bound(item: CaseComparison) -> str:
    return f"{100 * item.bound_us / item.after_us:.0f}%" if item.bound_us else "-"
