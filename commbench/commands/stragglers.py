"""`commbench stragglers`: slow ranks and slow links of finished runs, with evidence. Exit code 1 if there are some."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commbench.analysis import pair_matrices
from commbench.analysis.pair_matrices import Matrix
from commbench.analysis.stragglers import ranks, suspects
from commbench.analysis.stragglers.search import Finding, Search
from commbench.console import stderr_console
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.output.describe import describe
from commbench.run_folder import RunFolder
from commbench.units import format_size

EXIT_NOTHING, EXIT_NAMED = 0, 1


@dataclass(slots=True)
class Part:
    """What was looked at together, and who stands out there."""

    what: str
    launches: int
    size_bytes: int | None
    layout: Layout
    tests: int
    found: list[Finding]
    notes: list[str] = field(default_factory=list)


def run(paths: Sequence[Path], format: str, effect: float) -> int:
    if not effect > 1:
        raise UsageError(f"--effect is {effect}", hint="how many times slower counts as slow: above 1, e.g. 1.3")
    folders = [RunFolder.open(path) for path in paths]
    tables = pair_matrices.of_runs(folders)
    others = ranks.gather(item for folder in folders for item in pair_matrices.launched(folder))
    if not tables and not others:
        raise UsageError(
            "these runs have nothing to judge ranks or links by",
            hint=f"measure pairs: commbench sweep pairs; of other sweeps {ranks.FEWEST_RANKS} ranks are needed, all "
            "doing the same",
        )
    counts = [suspects.count(table.layout) for table in tables]
    tests = sum(counts) + sum(item.excess.shape[1] for item in others)
    parts = [
        _of_matrix(table, own, Search(table.time_us, table.layout, min_effect=effect, tests=tests))
        for table, own in zip(tables, counts, strict=True)
    ]
    parts += [_of_ranks(item, ranks.search(item, min_effect=effect, tests=tests)) for item in others]
    named = _without_repeats(parts)
    if format == "json":
        _print_json(parts, named, effect)
    else:
        _print_text(parts, named, effect)
    for note in dict.fromkeys(note for part in parts for note in part.notes):
        stderr_console().print(f"note: {note}")
    return EXIT_NAMED if named else EXIT_NOTHING


def _of_matrix(table: Matrix, tests: int, search: Search) -> Part:
    row = table.row
    part = Part(
        what=f"{describe(row)}, {format_size(table.size_bytes)}",
        launches=table.launches,
        size_bytes=table.size_bytes,
        layout=table.layout,
        tests=tests,
        found=search.run(),
    )
    if unclear := search.unclear:
        part.notes.append(
            f"{format_size(table.size_bytes)}: {unclear.name} took {unclear.ratio:.2f}x as long; of "
            f"{table.launches} launch{'es' if table.launches > 1 else ''} nobody can tell whether it always does: "
            "measure with launches=6"
        )
    if table.launches < 2:
        part.notes.append("what was slow in one launch may have passed since: launches=6 tells")
    if row.nodes == 2:
        part.notes.append("with two nodes nothing is left to compare the whole link between them with but the bound")
    return part


def _of_ranks(item: ranks.Ranks, found: list[Finding]) -> Part:
    return Part(
        what=f"{item.cases} cases over {item.outer}: each rank's own time",
        launches=len(item.excess),
        size_bytes=None,
        layout=item.outer.layout,
        tests=item.excess.shape[1],
        found=found,
    )


def _without_repeats(parts: Sequence[Part]) -> list[tuple[Part, Finding]]:
    """All findings, the slowest first, less those that show the same or a part of it elsewhere: at another size."""
    kept: list[tuple[Part, Finding]] = []
    everything = [(part, finding) for part in parts for finding in part.found]
    for part, finding in sorted(everything, key=lambda item: (-len(item[1].cells), -item[1].ratio)):
        if not any(_covers(of, other, part, finding) for of, other in kept):
            kept.append((part, finding))
    return sorted(kept, key=lambda item: -item[1].ratio)


def _covers(of: Part, one: Finding, part: Part, other: Finding) -> bool:
    """Whether `other` says no more than `one`: the same ranks, and no messages that `one` has not."""
    if of.layout != part.layout:
        return False
    return other.name == one.name or (bool(other.cells) and other.cells <= one.cells)


def _also(parts: Sequence[Part], part: Part, finding: Finding) -> list[str]:
    """Where else the same was seen."""
    return [
        f"{format_size(other.size_bytes) if other.size_bytes else other.what}: {same.ratio:.2f}x"
        for other in parts
        if other is not part
        for same in other.found
        if same.name == finding.name
    ]


def _print_text(parts: Sequence[Part], named: Sequence[tuple[Part, Finding]], effect: float) -> None:
    lines = []
    for part in parts:
        lines.append(f"{part.what}: {part.launches} launch{'es' if part.launches > 1 else ''}")
        mine = [finding for of, finding in named if of is part]
        for finding in mine:
            lines += [f"  SLOW {finding.kind.upper():5} {finding.name}: {_ratio(finding)}"]
            lines += [f"             {line}" for line in _evidence(finding, part)]
            if also := _also(parts, part, finding):
                lines.append(f"             also at {', '.join(also)}")
        if len(part.found) > len(mine):
            lines.append(f"  the same as elsewhere: {', '.join(_known(part, named))}")
        rest = "nothing else stands out" if part.found else "nothing stands out"
        lines.append(f"  {rest}: {part.tests} suspects, slow is {effect:g}x and more")
    sys.stdout.write("\n".join(lines) + "\n")


def _known(part: Part, named: Sequence[tuple[Part, Finding]]) -> list[str]:
    """What stands out in a part and is named in another one."""
    mine = [id(finding) for of, finding in named if of is part]
    return [f"{finding.name} ({finding.ratio:.2f}x)" for finding in part.found if id(finding) not in mine]


def _ratio(finding: Finding) -> str:
    between = f" [{finding.low:.2f}, {finding.high:.2f}]" if finding.low and finding.high else ""
    return f"{finding.ratio:.2f}x{between}{' (interval of messages)' if finding.interval_of == 'messages' else ''}"


def _evidence(finding: Finding, part: Part) -> list[str]:
    where = {"intra": "inside nodes", "inter": "between nodes"}
    lines = [
        f"{where[link]}: {_time(time)} against {_time(finding.usual_us[link])} of messages that no culprit touches"
        for link, time in finding.time_us.items()
    ]
    if finding.messages and finding.time_us:
        lines[-1] += f" ({finding.messages} messages against {finding.usual_messages})"
    if finding.other_way is not None:
        lines.append(f"the other way: {finding.other_way:.2f}x")
    if "slowest_share" in finding.about:
        fair = 1 / (finding.usual_messages + 1)
        lines.append(f"the slowest of all in {finding.about['slowest_share']:.0%} of samples, {fair:.0%} by chance")
    chance = "less than 1e-6" if finding.chance < 1e-6 else f"at most {finding.chance:.1g}"
    lines.append(f"slow in {finding.launches_slow} of {finding.launches} launches; chance of any such: {chance}")
    return lines


def _time(time_us: float) -> str:
    return f"{time_us / 1000:.4g} ms" if time_us >= 1000 else f"{time_us:.4g} us"


def _print_json(parts: Sequence[Part], named: Sequence[tuple[Part, Finding]], effect: float) -> None:
    found: list[dict[str, Any]] = []
    for part, finding in named:
        line = {key: value for key, value in dataclasses.asdict(finding).items() if key not in ("cells", "about")}
        found.append({**line, **finding.about, "what": part.what, "size_bytes": part.size_bytes,
                      "also": _also(parts, part, finding)})  # fmt: skip
    looked = [
        {"what": part.what, "size_bytes": part.size_bytes, "launches": part.launches, "suspects": part.tests}
        for part in parts
    ]
    sys.stdout.write(json.dumps({"found": found, "looked_at": looked, "min_effect": effect}) + "\n")
