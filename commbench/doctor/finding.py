"""What a check says: a status, one line of fact, why it matters, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from commbench.doctor.system import System
from commbench.machine import cpulist


class CheckStatus(StrEnum):
    OK = "ok"
    NOTE = "note"  # worth knowing when numbers are read; measuring is fine
    WARN = "warn"  # numbers will be worse, or vary more, than they need to
    FAIL = "fail"  # something will not work


@dataclass(frozen=True, slots=True)
class Finding:
    status: CheckStatus
    value: str
    why: str = ""
    do: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `look` returns None where the question does not arise: no GPU has no clocks."""

    section: str
    name: str
    look: Callable[[System], Finding | None]


def ok(value: str) -> Finding:
    return Finding(CheckStatus.OK, value)


def note(value: str, why: str = "", do: str = "") -> Finding:
    return Finding(CheckStatus.NOTE, value, why, do)


def warn(value: str, why: str, do: str) -> Finding:
    return Finding(CheckStatus.WARN, value, why, do)


def fail(value: str, why: str, do: str) -> Finding:
    return Finding(CheckStatus.FAIL, value, why, do)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def some(items: list[str], most: int = 4) -> str:
    """Return the first few of them, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def ranges(numbers: set[int]) -> str:
    """Return `0-3,8`, as the kernel writes lists of CPUs."""
    return cpulist.text(numbers)


def numbers(text: str) -> set[int]:
    """Read what `ranges` writes."""
    return set(cpulist.parse(text)) if text else set()
