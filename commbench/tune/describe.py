"""A tuning in words: what it would try, and what it chose with its evidence."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from commbench.output.answer import words
from commbench.output.grid import AS_FITS, Column, TableStyle, folded, grid, number
from commbench.profile import Choice, Evidence, Profile, name_collective
from commbench.record.trace import ProgramTrace
from commbench.records import network_note
from commbench.sweep import foreign_keys
from commbench.tune import space
from commbench.tune.confirmation import Control
from commbench.tune.space import Region
from commbench.units import format_seconds, format_size


def count(region: Region) -> str:
    """Return how much there is to try."""
    candidates = sum(len(problem.candidates) for problem in region.problems)
    starts = f", {len(region.setups)} ways to start ranks" if len(region.setups) > 1 else ""
    sizes = len({problem.size_bytes for problem in region.problems})
    return f"{candidates} candidates at {sizes} size{'s' if sizes > 1 else ''}{starts}"


def plan(regions: Sequence[Region], budget_s: float, gain: float) -> list[str]:
    """Return what would be tried, a line for each candidate."""
    lines = [f"budget: {format_seconds(budget_s)}; a gain below {100 * gain:.0f} % is none"]
    for region in regions:
        lines.append(f"{region}: {count(region)}")
        for name in dict.fromkeys(space.label(c, region.default) for p in region.problems for c in p.candidates):
            lines.append(f"    {name}")
        default = region.problems[0].default
        lines.append(f"    against the default, {space.label(default, region.default)}")
    return lines


class _Proven(NamedTuple):
    """A choice at one size."""

    name: str  # of the collective
    choice: Choice
    proof: Evidence

    @property
    def ratio(self) -> str:
        """`1.52x [1.48-1.56]`."""
        return words.ratio(self.proof.ratio, self.proof.low, self.proof.high)


def columns() -> list[Column[_Proven]]:
    """Return the columns of what was chosen."""
    return [
        Column(name="collective", left=True, once=True, text=lambda row: row.name),
        Column(name="size", text=lambda row: format_size(row.proof.size_bytes).replace(" ", "")),
        Column(name="default", text=lambda row: row.proof.default.replace(" ", ","), left=True, once=True, goes=2),
        Column(name="default_us", text=lambda row: number(row.proof.default_us), goes=3),
        Column(name="choice", text=lambda row: _chosen(row.choice), left=True),
        Column(name="choice_us", text=lambda row: number(row.proof.chosen_us)),
        Column(name="gain", text=lambda row: row.ratio.partition(" ")[0]),
        Column(name="interval", heading="[low-high]", text=lambda row: row.ratio.partition(" ")[2]),
        Column(name="pairs", text=lambda row: str(row.proof.pairs), once=True, goes=1),
    ]  # fmt: skip


def _chosen(choice: Choice) -> str:
    return choice.label.replace(" ", ",") + (f",{choice.buffers}" if choice.buffers != "plain" else "")


def table(profile: Profile, controls: Sequence[Control], look: TableStyle = AS_FITS) -> list[str]:
    """Return the choices with their evidence, for people."""
    lines: list[str] = []
    for scope, control in zip(profile.scopes, controls, strict=True):
        lines += folded(f"{scope.id}: {scope}")
        lines += folded(f"note: {note}") if (note := network_note(scope.fabric)) else []
        choices = profile.of_scope(scope.id)
        rows = [
            _Proven(name_collective(choice, choices), choice, proof) for choice in choices for proof in choice.evidence
        ]
        laid = grid(columns(), rows, look)
        lines += [*itertools.chain(*map(folded, laid.notes)), *laid.framed(look)]
        wrong = [
            one for one in profile.refused if one.scope == scope.id and one.why in ("wrong_result", "timeout", "error")
        ]
        said = [*_reasons(choices), _control_text(control)]
        said += [f"refused: {one.label}: {one.why}: {one.reason}" for one in wrong]
        lines += itertools.chain(*map(folded, said))
    return lines


def _reasons(choices: Sequence[Choice]) -> list[str]:
    return [
        f"{format_size(one.size_bytes)}: {one.verdict}"
        for choice in choices
        for one in choice.evidence
        if not one.confirmed
    ]


def _control_text(control: Control) -> str:
    return (
        f"A-A control: the default beside itself looks up to {control.apparent or 1.0:.3f} times as fast; "
        f"{control.passed} of {len(control.claims)} would have been taken for a gain"
    )


_ANY_PROGRAM = ("torchrun", "--nproc-per-node=8", "train.py")  # as README and help have it


def next_step(profile: Path, trace: ProgramTrace | None, *, reductions: bool = False) -> tuple[str, str]:
    """Return what to do with the profile, and the command. reductions: whether its sums were tuned."""
    if trace is None:
        typed = shlex.join(["commbench", "ab", "--profile", str(profile), "--", *_ANY_PROGRAM])
        return "measure what it is worth in your program", typed
    return "measure what it is worth", f"commbench ab {_with_program(profile, trace, reductions)}"


def use(profile: Path, trace: ProgramTrace | None, *, reductions: bool = False) -> list[str]:
    """Return the commands to go on with: the recorded program's own, or what fits any program.

    reductions: whether its sums were tuned.
    """
    if trace is None:
        typed = shlex.join(["commbench", "exec", "--profile", str(profile), "--", *_ANY_PROGRAM])
        return [f"use it: {typed}, or commbench.load_profile({str(profile)!r}) in Python"]
    typed = _with_program(profile, trace, reductions)
    return [f"use it: commbench exec {typed}", f"what it is worth: commbench ab {typed}"]


def _with_program(profile: Path, trace: ProgramTrace, reductions: bool) -> str:
    """Return the words that run the recorded program with the profile, on the fabric that it was recorded on."""
    words = ["--profile", str(profile), *(["--reductions"] if reductions else [])]
    if trace.fabric:
        nodes, ranks_per_node = trace.layout()
        keys = {**trace.fabric, "nodes": nodes, "ranks_per_node": ranks_per_node}
        words += [
            f"{name}={keys[name]}"
            for name, key in foreign_keys.KEYS.items()
            if name == "nodes" or keys.get(name, key.default) != key.default
        ]
    return shlex.join([*words, "--", *(trace.command or ["COMMAND"])])
