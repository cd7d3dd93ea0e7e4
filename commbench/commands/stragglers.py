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
from commbench.analysis.stragglers.search import Search, Straggler
from commbench.console import stderr_console
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.output.describe import describe
from commbench.run_folder import RunFolder
from commbench.units import format_size

EXIT_NOTHING, EXIT_NAMED = 0, 1


@dataclass(slots=True)
class Examined:
    """A matrix or a set-up that was examined by itself, and who stands out there."""

    what: str
    launches: int
    size_bytes: int | None
    layout: Layout
    tests: int
    stragglers: list[Straggler]
    notes: list[str] = field(default_factory=list)


def run(paths: Sequence[Path], format: str, effect: float) -> int:
    if not effect > 1:
        raise UsageError(f"--effect is {effect}", hint="how many times slower counts as slow: above 1, e.g. 1.3")
    folders = [RunFolder.open(path) for path in paths]
    tables = pair_matrices.of_runs(folders)
    others = ranks.gather(item for folder in folders for item in pair_matrices.read_launches(folder))
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


def _of_matrix(table: Matrix, tests: int, search: Search) -> Examined:
    row = table.row
    part = Examined(
        what=f"{describe(row)}, {format_size(table.size_bytes)}",
        launches=table.launches,
        size_bytes=table.size_bytes,
        layout=table.layout,
        tests=tests,
        stragglers=search.run(),
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


def _of_ranks(item: ranks.RankTimes, stragglers: list[Straggler]) -> Examined:
    return Examined(
        what=f"{item.cases} cases over {item.outer}: each rank's own time",
        launches=len(item.excess),
        size_bytes=None,
        layout=item.outer.layout,
        tests=item.excess.shape[1],
        stragglers=stragglers,
    )


def _without_repeats(parts: Sequence[Examined]) -> list[tuple[Examined, Straggler]]:
    """All findings, the slowest first, less those that show the same or a part of it elsewhere: at another size."""
    kept: list[tuple[Examined, Straggler]] = []
    everything = [(part, straggler) for part in parts for straggler in part.stragglers]
    for part, straggler in sorted(everything, key=lambda item: (-len(item[1].cells), -item[1].ratio)):
        if not any(_covers(of, other, part, straggler) for of, other in kept):
            kept.append((part, straggler))
    return sorted(kept, key=lambda item: -item[1].ratio)


def _covers(of: Examined, one: Straggler, part: Examined, other: Straggler) -> bool:
    """Whether `other` says no more than `one`: the same ranks, and no messages that `one` has not."""
    if of.layout != part.layout:
        return False
    return other.name == one.name or (bool(other.cells) and other.cells <= one.cells)


def _also(parts: Sequence[Examined], part: Examined, straggler: Straggler) -> list[str]:
    """Where else the same was seen."""
    return [
        f"{format_size(other.size_bytes) if other.size_bytes else other.what}: {same.ratio:.2f}x"
        for other in parts
        if other is not part
        for same in other.stragglers
        if same.name == straggler.name
    ]


def _print_text(parts: Sequence[Examined], named: Sequence[tuple[Examined, Straggler]], effect: float) -> None:
    lines = []
    for part in parts:
        lines.append(f"{part.what}: {part.launches} launch{'es' if part.launches > 1 else ''}")
        mine = [straggler for of, straggler in named if of is part]
        for straggler in mine:
            lines += [f"  SLOW {straggler.kind.upper():5} {straggler.name}: {_ratio(straggler)}"]
            lines += [f"             {line}" for line in _evidence(straggler, part)]
            if also := _also(parts, part, straggler):
                lines.append(f"             also at {', '.join(also)}")
        if len(part.stragglers) > len(mine):
            lines.append(f"  the same as elsewhere: {', '.join(_known(part, named))}")
        rest = "nothing else stands out" if part.stragglers else "nothing stands out"
        lines.append(f"  {rest}: {part.tests} suspects, slow is {effect:g}x and more")
    sys.stdout.write("\n".join(lines) + "\n")


def _known(part: Examined, named: Sequence[tuple[Examined, Straggler]]) -> list[str]:
    """What stands out in a part and is named in another one."""
    mine = [id(straggler) for of, straggler in named if of is part]
    return [f"{straggler.name} ({straggler.ratio:.2f}x)" for straggler in part.stragglers if id(straggler) not in mine]


def _ratio(straggler: Straggler) -> str:
    between = f" [{straggler.low:.2f}, {straggler.high:.2f}]" if straggler.low and straggler.high else ""
    return f"{straggler.ratio:.2f}x{between}{' (interval of messages)' if straggler.interval_of == 'messages' else ''}"


def _evidence(straggler: Straggler, part: Examined) -> list[str]:
    where = {"intra": "inside nodes", "inter": "between nodes"}
    lines = [
        f"{where[link]}: {_time(time)} against {_time(straggler.usual_us[link])} of messages that no culprit touches"
        for link, time in straggler.time_us.items()
    ]
    if straggler.messages and straggler.time_us:
        lines[-1] += f" ({straggler.messages} messages against {straggler.usual_messages})"
    if straggler.other_way is not None:
        lines.append(f"the other way: {straggler.other_way:.2f}x")
    if "slowest_share" in straggler.about:
        fair = 1 / (straggler.usual_messages + 1)
        lines.append(f"the slowest of all in {straggler.about['slowest_share']:.0%} of samples, {fair:.0%} by chance")
    chance = "less than 1e-6" if straggler.chance < 1e-6 else f"at most {straggler.chance:.1g}"
    lines.append(f"slow in {straggler.launches_slow} of {straggler.launches} launches; chance of any such: {chance}")
    return lines


def _time(time_us: float) -> str:
    return f"{time_us / 1000:.4g} ms" if time_us >= 1000 else f"{time_us:.4g} us"


def _print_json(parts: Sequence[Examined], named: Sequence[tuple[Examined, Straggler]], effect: float) -> None:
    objects: list[dict[str, Any]] = []
    for part, straggler in named:
        line = {key: value for key, value in dataclasses.asdict(straggler).items() if key not in ("cells", "about")}
        objects.append({**line, **straggler.about, "what": part.what, "size_bytes": part.size_bytes,
                      "also": _also(parts, part, straggler)})  # fmt: skip
    looked = [
        {"what": part.what, "size_bytes": part.size_bytes, "launches": part.launches, "suspects": part.tests}
        for part in parts
    ]
    sys.stdout.write(json.dumps({"found": objects, "looked_at": looked, "min_effect": effect}) + "\n")
