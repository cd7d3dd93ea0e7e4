"""KEYS: the keys that a tuning has and a sweep has not."""

from __future__ import annotations

from typing import Any

from commbench.stats import MINIMUM_GAIN
from commbench.sweep.key import Key, Number, OneOf, Parsed
from commbench.units import parse_seconds

GROUP = "A tuning alone"


def _seconds(name: str, value: Any) -> float:
    return parse_seconds(name, str(value))


KEYS: dict[str, Key] = {
    "budget": Key(Parsed(_seconds, "90s, 8m, 1.5h"), "time for all of a tuning", default="10m", group=GROUP),
    "gain": Key(
        Number(float, 0, 10), "the least gain that is worth a change: 0.03 is 3 %", default=MINIMUM_GAIN, group=GROUP
    ),
    "reductions": Key(
        OneOf(("false", "true")),
        "of a trace: its sums too, for exec --reductions, which adds in another order",
        default="false",
        group=GROUP,
    ),
}
