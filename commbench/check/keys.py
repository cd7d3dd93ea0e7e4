"""KEYS: the key that a check has and a sweep has not, and which keys of a sweep it takes."""

from __future__ import annotations

import textwrap
from typing import Any

from commbench.errors import UsageError, unknown
from commbench.sweep import keys as sweep
from commbench.sweep.key import Key, Parsed, explain
from commbench.units import parse_seconds

GROUP = "A check alone"


def _seconds(name: str, value: Any) -> float:
    return parse_seconds(name, str(value))


KEYS: dict[str, Key] = {
    "budget": Key(
        Parsed(_seconds, "30s, 3m, 0.5h"), "time for all of a check: as many launches as fit, 6 at the least",
        default="3m", group=GROUP,
    ),
}  # fmt: skip
# What is measured is the check's own; where, over what and how long each message is measured is the user's.
_TAKEN = {
    "transport", "dtype", "buffers", "sizes.min", "sizes.max", "launches", "iters", "warmup", "cap", "samples.min",
    "samples.max", "precision", "timeout", "seed", "script", "link_rate.inter", "link_rate.intra",
}  # fmt: skip
_GROUPS = (sweep.RANKS, sweep.FABRIC)


def taken() -> dict[str, Key]:
    """Return the keys of a sweep that a check takes."""
    return {name: of for name, of in sweep.KEYS.items() if name in _TAKEN or of.group in _GROUPS}


def read(words: tuple[str, ...]) -> tuple[tuple[str, ...], float]:
    """Return the words without `budget=`, and the budget in seconds. Raises `UsageError` for a key of no check."""
    budget, left = KEYS["budget"].default, []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"commbench check takes no recipe, but {word!r} was given",
                             hint="it measures the same everywhere; write KEY=VALUE: commbench keys")  # fmt: skip
        if name == "budget":
            budget = value
            continue
        if name.startswith("env."):
            pass
        elif name not in taken():
            if name in sweep.KEYS:
                raise UsageError(f"{name} is a key of commbench sweep, and a check decides it by itself",
                                 hint=f"leave it out, or measure it: commbench sweep pairs {word}")  # fmt: skip
            raise unknown("key", name, [*taken(), *KEYS, "env.NAME"])
        if "," in value and name not in ("script", "cpu_masks") and not name.startswith("env."):
            raise UsageError(f"{name} takes one value in a check, not {value!r}", hint="run one check for each")
        left.append(word)
    seconds: float = KEYS["budget"].check("budget", budget)
    return tuple(left), seconds


def explain_keys(width: int) -> str:
    """Return what help says of every key, in lines of `width` letters."""
    head = "KEYs, each with what it is where you set nothing. They are those of commbench sweep that say where."
    keys = {**KEYS, **taken()}
    groups = (GROUP, *sweep.GROUPS)
    return "\n".join(["", *textwrap.wrap(head, width), explain(keys, groups, width).rstrip()]) + "\n"
