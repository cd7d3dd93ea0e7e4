"""A tuning in words: what it would try, and what it chose with its evidence."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from commbench.profile import Choice, Profile
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
    lines = [f"budget: {format_seconds(budget_s)}; a gain below {gain:.0%} is none"]
    for region in regions:
        lines.append(f"{region}: {count(region)}")
        for name in dict.fromkeys(space.label(c, region.default) for p in region.problems for c in p.candidates):
            lines.append(f"    {name}")
        default = region.problems[0].default
        lines.append(f"    against the default, {space.label(default, region.default)}")
    return lines


def table(profile: Profile, controls: Sequence[Control]) -> list[str]:
    """Return the choices with their evidence, for people."""
    lines: list[str] = []
    for scope, control in zip(profile.scopes, controls, strict=True):
        lines.append(f"# {scope.id}: {scope}")
        lines += [f"# note: {note}"] if (note := network_note(scope.fabric)) else []
        head = ("collective", "size", "default", "us", "choice", "us", "gain", "95 % interval", "pairs")
        rows = [head]
        for choice in profile.of_scope(scope.id):
            for one in choice.evidence:
                interval = "" if one.low is None or one.high is None else f"{one.low:.3f} - {one.high:.3f}"
                chosen = choice.label + (f", {choice.buffers}" if choice.buffers != "plain" else "")
                name = choice.collective + (" captured" if choice.captured else "")
                rows.append((name, format_size(one.size_bytes), one.default, f"{one.default_us:.1f}", chosen,
                             f"{one.chosen_us:.1f}", f"{one.ratio:.3f}", interval, str(one.pairs)))  # fmt: skip
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        right = {3, 5, 6, 8}
        lines += [
            "  ".join(
                cell.rjust(width) if column in right else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += [f"# {text}" for text in _reasons(profile.of_scope(scope.id))]
        lines.append(f"# {_control_text(control)}")
        wrong = [
            one for one in profile.refused if one.scope == scope.id and one.why in ("wrong_result", "timeout", "error")
        ]
        lines += [f"# refused: {one.label}: {one.why}: {one.reason}" for one in wrong]
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


def next_step(profile: Path, trace: ProgramTrace | None) -> tuple[str, str]:
    """Return what to do with the profile, and the command."""
    if trace is None:
        return "use it", shlex.join(["commbench", "export", str(profile), "--format", "env"])
    return "measure what it is worth", f"commbench ab {_with_program(profile, trace)}"


def use(profile: Path, trace: ProgramTrace | None) -> list[str]:
    """Return the commands to go on with: the recorded program's own, or what fits any program."""
    if trace is None:
        return [
            f"use it: commbench export {profile} --format env, or commbench.load_profile({str(profile)!r}) in Python"
        ]
    typed = _with_program(profile, trace)
    return [f"use it: commbench exec {typed}", f"what it is worth: commbench ab {typed}"]


def _with_program(profile: Path, trace: ProgramTrace) -> str:
    """Return the words that run the recorded program with the profile, on the fabric that it was recorded on."""
    words = ["--profile", str(profile)]
    if trace.fabric:
        nodes, ranks_per_node = trace.layout()
        keys = {**trace.fabric, "nodes": nodes, "ranks_per_node": ranks_per_node}
        words += [
            f"{name}={keys[name]}"
            for name, key in foreign_keys.KEYS.items()
            if name == "nodes" or keys.get(name, key.default) != key.default
        ]
    return shlex.join([*words, "--", *(trace.command or ["COMMAND"])])
