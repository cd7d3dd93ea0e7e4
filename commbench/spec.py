"""Spec: what an algorithm is asked to do. The one argument of `unsupported`, `steps` and `prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from commbench.layout import LINK_CLASSES, Layout, LinkClass

# What a collective is asked beside its size: the operation, the root, how an uneven exchange splits.
Value = int | float | str
Arguments = Mapping[str, Value]

# Bytes per element. Algorithms that only move data see bytes; collectives and reductions alone know dtypes.
DTYPES: dict[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int32": 4, "uint8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One call in one group: `size_bytes` is nccl-tests' size column, `layout` that of the group."""

    collective: str
    dtype: str
    size_bytes: int
    layout: Layout
    params: Mapping[str, int] = field(default_factory=dict)  # of the algorithm
    arguments: Arguments = field(default_factory=dict)  # of the collective
    in_place: bool = False
    buffers: str = "plain"

    @property
    def ranks(self) -> int:
        return self.layout.ranks

    @property
    def block_bytes(self) -> int:
        """`size_bytes` in as many equal parts as there are ranks."""
        return self.size_bytes // self.ranks

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype]


class Send(NamedTuple):
    """`nbytes` from rank `src` to rank `dst`; both are global ranks, never equal."""

    src: int
    dst: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Messages that one phase of an algorithm moves.

    A rank enters the step when it has finished its own part of every step named in `after`; there is no barrier
    between steps. The link class of a send follows from the layout, so that it is written down in one place only.
    """

    name: str
    sends: tuple[Send, ...]
    after: tuple[str, ...] = ()
    chunk: int = 0


def traffic_split(sends: list[Send], layout: Layout) -> dict[LinkClass, int]:
    """Bytes per call over each link class, all ranks together."""
    total: dict[LinkClass, int] = dict.fromkeys(LINK_CLASSES, 0)
    for src, dst, nbytes in sends:
        total[layout.link(src, dst)] += nbytes
    return total
