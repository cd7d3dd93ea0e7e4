"""`commbench doctor`: what this machine has, and what would spoil a measurement. Starts nothing and changes nothing."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.console import Console
from rich.text import Text

from commbench.doctor import CHECKS, Check, CheckStatus, Finding, examine
from commbench.doctor.system import System

_STYLES = {CheckStatus.OK: "green", CheckStatus.NOTE: "cyan", CheckStatus.WARN: "yellow", CheckStatus.FAIL: "bold red"}
_NAME_WIDTH = max(len(check.name) for check in CHECKS)
_INDENT = " " * (2 + 4 + 2 + _NAME_WIDTH + 2)  # margin, status, gap, name, gap
_NARROWEST = 40


def run(format: str, system: System | None = None) -> int:
    """Print each finding as it comes; return 1 if a check failed, else 0."""
    counts: Counter[CheckStatus] = Counter()

    def counted() -> Iterator[tuple[Check, Finding]]:
        for check, finding in examine(system or System()):
            counts[finding.status] += 1
            yield check, finding

    if format == "json":
        _print_json(counted())
    else:
        _print_table(counted())
        _say(Text("\n" + ", ".join(f"{counts[status]} {status}" for status in CheckStatus)))
    return 1 if counts[CheckStatus.FAIL] else 0


def _print_json(findings: Iterable[tuple[Check, Finding]]) -> None:
    for check, finding in findings:
        row = {
            "section": check.section,
            "name": check.name,
            "status": finding.status,
            "value": finding.value,
            "why": finding.why,
            "do": finding.do,
        }
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def _print_table(findings: Iterable[tuple[Check, Finding]]) -> None:
    console = _console()
    # Lines are wrapped for people's eyes only: whoever pipes them may want to grep.
    width = max(_NARROWEST, console.width - len(_INDENT)) if console.is_terminal else 1 << 16
    for number, (section, members) in enumerate(groupby(findings, key=lambda pair: pair[0].section)):
        _say(Text(("\n" if number else "") + section, style="bold"))
        for check, finding in members:
            first, *rest = _wrapped(finding.value, width)
            sign = (f"{finding.status:4}", _STYLES[finding.status])
            _say(Text.assemble("  ", sign, f"  {check.name:{_NAME_WIDTH}}  ", first))
            for line in rest:
                _say(Text(_INDENT + line))
            for word, text in (("why:", finding.why), ("do:", finding.do)):
                for at, line in enumerate(_wrapped(text, width - 5) if text else []):
                    _say(Text.assemble(_INDENT, ("" if at else word).ljust(5), line))


def _wrapped(text: str, width: int) -> list[str]:
    """Return lines with no word broken, so that paths can be copied, and nothing that cannot be written."""
    text = text.encode(errors="backslashreplace").decode()
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _say(text: Text) -> None:
    console = _console()
    if console.is_terminal:
        console.print(text)
    else:  # rich would end the process by itself when the reader has gone
        sys.stdout.write(text.plain + "\n")
        sys.stdout.flush()


def _console() -> Console:
    """Return a console on stdout that honours NO_COLOR, FORCE_COLOR and TERM=dumb, and knows no markup."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
