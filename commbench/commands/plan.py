"""`commbench plan`: the best parallel strategies of a model on a cluster, and how sure that is."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from commbench.console import stderr_console
from commbench.errors import unknown
from commbench.output import grid
from commbench.output.grid import TableStyle
from commbench.strategy import answer, emit, layer_mix, planned, ranking, validation


def run(
    words: Sequence[str], *, format_: str, top: int | None, emitted: str, extrapolate: bool, plot: Path | None,
    columns: str, validate: bool = False, out: Path = Path("results"),
) -> int:  # fmt: skip
    """Print the answer, the best strategies and what was asked to be emitted; return 0. Raises `UsageError`."""
    wanted = [name for name in emitted.split(",") if name]
    for name in wanted:
        if name not in emit.TABLE:
            raise unknown("trainer", name, emit.TABLE)
    request = planned.read(words, extrapolate=extrapolate)
    problem = request.problem
    look = TableStyle(columns=columns, markdown=format_ == "markdown")
    grid.check(columns, [column.name for column in answer.columns(problem)])
    found = ranking.rank(problem, current=request.current)
    filled = layer_mix.told(problem, found.ranked[0]) if found.ranked[0].binds == "memory" else ""
    notes, facts = [*request.notes, *([filled] if filled else [])], {}
    if validate:
        console = stderr_console()
        trained = validation.validate(request, validation.members(request, answer.group(found)), request.budget_s, out,
                                      lambda text: console.print(text, markup=False, highlight=False))  # fmt: skip
        notes.append(validation.sentence(trained))
        facts["validated"] = validation.as_dict(trained)
    commands = planned.commands(request, answer.group(found))
    said = answer.answer(problem, found, commands, notes)
    runnable = {name: next((one for one in found.ranked if name in one.trainers), None) for name in emit.TABLE}
    texts = {name: emit.emitted(name, problem, runnable, request.model.config) for name in wanted}
    if plot is not None:
        from commbench.plots import plan as picture

        picture.save(plot, problem, found)
    if format_ == "json":
        shown = found.ranked if top is None else found.ranked[:top]
        for one in shown:
            sys.stdout.write(json.dumps(answer.as_dict(problem, one)) + "\n")
        ending = said.as_dict()
        ending["answer"] |= {"emitted": texts, **facts}
        sys.stdout.write(json.dumps(ending) + "\n")
        return 0
    lines = [*said.lines(), *answer.table(problem, found, top, look)]
    apart = [line for line in commands if line != said.command]
    if apart:
        lines += ["# to start each of these:", *(f"#   {line}" for line in apart)]
    for text in texts.values():
        lines += ["", text]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
