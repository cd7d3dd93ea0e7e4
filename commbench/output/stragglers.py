"""What examining runs for stragglers says, for people and for programs."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from commbench.analysis.stragglers.examine import Examined
from commbench.analysis.stragglers.search import Straggler
from commbench.output.describe import describe
from commbench.output.grid import folded, line_width
from commbench.records import network_note
from commbench.units import format_size, unit_of_us

_INDENT, _UNDER = "  ", " " * 13  # of a line, and of what stands under the name of a slow one


def text(parts: Sequence[Examined], named: Sequence[tuple[Examined, Straggler]], effect: float) -> str:
    """Return what stands out in each part, with its evidence."""
    lines = []
    for part in parts:
        lines += folded(f"{_what(part)}: {part.launches} launch{'es' if part.launches > 1 else ''}", "", _INDENT)
        lines += folded(f"note: {note}", _INDENT, _INDENT * 2) if (note := network_note(part.fabric)) else []
        mine = [straggler for of, straggler in named if of is part]
        for straggler in mine:
            lines += [f"  SLOW {straggler.kind.upper():5} {straggler.name}: {_ratio(straggler)}"]
            said = evidence(straggler, part)
            if also := _also(parts, part, straggler):
                said.append(f"also at {', '.join(also)}")
            lines += [line for text in said for line in _wrapped(text)]
        if len(part.stragglers) > len(mine):
            lines += folded(f"the same as elsewhere: {', '.join(_known(part, named))}", _INDENT, _INDENT * 2)
        rest = "nothing else stands out" if part.stragglers else "nothing stands out"
        lines += folded(f"{rest}: {part.tests} candidates, slow is {effect:g}x and more", _INDENT, _INDENT * 2)
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    """Return evidence as lines that fit, broken between words: its phrases are too long to break between them."""
    return textwrap.wrap(
        text, line_width(), initial_indent=_UNDER, subsequent_indent=f"{_UNDER}  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _known(part: Examined, named: Sequence[tuple[Examined, Straggler]]) -> list[str]:
    """What stands out in a part and is named in another one."""
    mine = [id(straggler) for of, straggler in named if of is part]
    return [f"{straggler.name} ({straggler.ratio:.2f}x)" for straggler in part.stragglers if id(straggler) not in mine]


def _ratio(straggler: Straggler) -> str:
    between = f" [{straggler.low:.2f}, {straggler.high:.2f}]" if straggler.low and straggler.high else ""
    return f"{straggler.ratio:.2f}x{between}{' (interval of messages)' if straggler.interval_of == 'messages' else ''}"


def evidence(straggler: Straggler, part: Examined) -> list[str]:
    """Return how it is known that somebody is slow, in lines."""
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
        share, fair = 100 * straggler.about["slowest_share"], 100 / (straggler.usual_messages + 1)
        lines.append(f"the slowest of all in {share:.0f} % of samples, {fair:.0f} % by chance")
    chance = "less than 1e-6" if straggler.chance < 1e-6 else f"at most {straggler.chance:.1g}"
    lines.append(f"slow in {straggler.launches_slow} of {straggler.launches} launches; chance of any such: {chance}")
    return lines


def _time(time_us: float) -> str:
    scale, unit = unit_of_us(time_us)
    return f"{time_us / scale:.4g} {unit}"


def as_json(parts: Sequence[Examined], named: Sequence[tuple[Examined, Straggler]], effect: float) -> dict[str, Any]:
    """Return the same as one JSON object."""
    objects: list[dict[str, Any]] = []
    for part, straggler in named:
        line = {key: value for key, value in dataclasses.asdict(straggler).items() if key not in ("cells", "about")}
        objects.append({**line, **straggler.about, "what": _what(part), "size_bytes": part.size_bytes,
                      "fabric": part.fabric, "also": _also(parts, part, straggler)})  # fmt: skip
    looked = [
        {
            "what": _what(part),
            "size_bytes": part.size_bytes,
            "launches": part.launches,
            "suspects": part.tests,
            "fabric": part.fabric,
        }
        for part in parts
    ]
    return {"found": objects, "looked_at": looked, "min_effect": effect}


def _what(part: Examined) -> str:
    return part.what if part.row is None else f"{describe(part.row)}, {format_size(part.size_bytes or 0)}"


def _also(parts: Sequence[Examined], part: Examined, straggler: Straggler) -> list[str]:
    """Where else the same was seen."""
    return [
        f"{format_size(other.size_bytes) if other.size_bytes else _what(other)}: {same.ratio:.2f}x"
        for other in parts
        if other is not part
        for same in other.stragglers
        if same.name == straggler.name
    ]
