"""A check in words: the verdict first, then who is named and why, what was looked at, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from commbench.check import HealthVerdict
from commbench.check.judge import BAD, NOTE, OK, UNKNOWN, HealthReport
from commbench.check.named import Named
from commbench.output.answer.claims import Answer
from commbench.output.grid import folded

_HEAD = {
    HealthVerdict.HEALTHY: "HEALTHY",
    HealthVerdict.NOT_HEALTHY: "NOT HEALTHY",
    HealthVerdict.CANNOT_TELL: "CANNOT TELL",
}
_WIDTH = 11  # of names of parts
_SIGNS = {OK: "ok", NOTE: "note", BAD: "BAD", UNKNOWN: "?"}
_STEPS = {
    "rank": "look at that rank's CPUs, GPU and memory, on its host",
    "node": "look at that node's CPUs and memory, on its host",
    "link": "look at rate, cable and error counters of what is named",
    "cpu": "end what uses the CPUs, or give the host to one job alone",
    "hardware": "look at the hardware of that node",
    "case": "read the logs of the run before anything else",
    "bound": "all are slow alike: look at routing and at the library's settings",
    "drift": "look at what changed since then",
}


def answer(report: HealthReport, folder: str) -> Answer:
    """Return the verdict in a sentence, and what to do next. folder: of the run, as a command takes it."""
    if report.named:
        sentences = [f"not healthy: {report.named[0].sentence}", *(one.sentence for one in report.named[1:])]
        first = report.named[0].kind
        command = "commbench doctor" if first in ("rank", "node", "cpu") else f"commbench plot {folder}"
        return Answer(sentences=[*sentences, *report.limits], step=_STEPS[first], command=command)
    if report.doubts:
        return Answer(
            sentences=[f"cannot tell: {report.doubts[0]}", *report.doubts[1:], *report.limits],
            step="give it more time, on machines that nobody else uses", command="commbench check budget=10m",
        )  # fmt: skip
    checked = [part.text for part in report.parts if part.status == OK and part.name in ("pairs", "all-to-all")]
    return Answer(sentences=["healthy: " + "; ".join(checked or ["nothing stands out"]), *report.limits],
                  step="nothing to repair")  # fmt: skip


def text(report: HealthReport, found: Answer) -> str:
    """Return all that a check says, for people."""
    lines = [_HEAD[report.verdict] + (f": {found.sentences[0].partition(': ')[2]}"), *folded(report.what, "  ", "  ")]
    for one in report.named:
        lines += _named(one)
    lines += ["", "looked at"]
    for part in report.parts:
        start = f"  {_SIGNS[part.status]:4}  {part.name:{_WIDTH}}"
        lines += folded(part.text, start, " " * (len(start) + 2))
    lines += ["", *found.lines("")]
    return _printable("\n".join(lines)) + "\n"


def _named(one: Named) -> Sequence[str]:
    head = folded(one.sentence, f"  {one.kind.upper():8}  ", " " * 14)
    return [*head, *(line for text in one.evidence for line in folded(text, " " * 12, " " * 14))]


def _printable(text: str) -> str:
    """Return text without what a terminal would obey: names of processes and hosts are others' words."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
