"""Choices: strategies of one layout of ranks and one schedule as one line, with what differs in it and is as good.

Dozens of strategies cannot be told from the best one; most of them are the same layout with another micro-batch,
another recompute or another exchange. Whoever decides, decides about lines.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from commbench.output.answer.words import count
from commbench.strategy.ranking import Ranked
from commbench.strategy.setting import Setting

MOST_SHOWN = 5
# What may differ within a line, and how it is called.
_FREE: tuple[tuple[str, Callable[[Setting], object]], ...] = (
    ("mb", lambda its: its.micro_batch),
    ("vpp", lambda its: its.vpp),
    ("chunks", lambda its: its.schedule.chunks),
    ("exchange", lambda its: its.exchange),
    ("zero", lambda its: its.zero),
    ("recompute", lambda its: its.recompute),
)
_KEYS = ("tp", "cp", "pp", "ep", "etp")  # those of `commbench plan` that name a line, with the schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChoice:
    """A line. best: the first of it; alike: the others of it that cannot be told from that; p_best: the chance that one
    of the line is the fastest; tied: whether the line cannot be told from the best one."""

    best: Ranked
    alike: tuple[Ranked, ...]
    p_best: float
    tied: bool

    @property
    def differs(self) -> str:
        """`mb 1, 2, 4; recompute none, selective`: what those that are as good have, where they differ; "" else."""
        found = []
        for name, value in _FREE:
            values = list(dict.fromkeys(str(value(one.setting)) for one in (self.best, *self.alike)))
            if len(values) > 1:
                found.append(f"{name} {', '.join(sorted(values, key=_by_number))}")
        return "; ".join(found)

    @property
    def text(self) -> str:
        """`rank 1: as good with mb 1, 2; recompute none, selective (7 others, up to 1.04x)`."""
        over = max(one.us for one in self.alike) / self.best.us
        others = count(len(self.alike), "other")
        return f"rank {self.best.rank}: {others} of it, up to {over:.2f}x, may be as good: {self.differs}"


def choices(ranked: Sequence[Ranked]) -> list[PlanChoice]:
    """Return all strategies as lines, in the order of the best of each."""
    lines: dict[int, list[Ranked]] = {}
    for one in ranked:
        lines.setdefault(one.line, []).append(one)
    return [
        PlanChoice(
            best=members[0],
            alike=tuple(one for one in members[1:] if one.as_good),
            p_best=sum(one.p_best for one in members),
            tied=any(one.tied for one in members),
        )
        for members in lines.values()
    ]


def planning(words: Sequence[str], setting: Setting) -> str:
    """Return the command that writes the best of a line in a trainer's words. words: that the plan was asked by."""
    kept = [word for word in words if word.partition("=")[0] not in (*_KEYS, "schedule", "current")]
    own = [f"{name}={getattr(setting, name)}" for name in _KEYS]
    return shlex.join(["commbench", "plan", *kept, *own, f"schedule={setting.schedule.name}", "--emit", "megatron"])


def _by_number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (0, text)
