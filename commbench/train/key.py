"""TrainKey: one key of a training, and checks of its value once it has the type of its field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from commbench.errors import UsageError
from commbench.sweep.key import Key, KeyCheck, Parsed


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A finite number that is not below `least`; whole numbers are below 2^63."""

    least: int

    def __call__(self, name: str, value: Any) -> Any:
        if not value >= self.least:
            raise UsageError(f"{name} is {value}", hint=f"{name} is {self.least} or more")
        if isinstance(value, int) and value >= 2**63:
            raise UsageError(f"{name} is {value}", hint=f"{name} is below 2^63")
        if value == math.inf:
            raise UsageError(f"{name} is {value}", hint=f"{name} is a finite number, {self.least} or more")
        return value

    def __str__(self) -> str:
        return f"{self.least} or more"


def _above_0(name: str, value: float) -> float:
    if not value > 0:
        raise UsageError(f"{name} is {value}", hint=f"{name} is above 0")
    return value


def _part(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UsageError(f"{name} is {value}", hint=f"0 <= {name} <= 1")
    return value


def _below_1(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise UsageError(f"{name} is {value}", hint=f"0 <= {name} < 1")
    return value


ANY = Parsed(lambda name, value: value)  # what moe_ref checks, or nobody needs to
ABOVE_0, PART, BELOW_1 = Parsed(_above_0, "above 0"), Parsed(_part, "0 to 1"), Parsed(_below_1, "0 to below 1")
AT_LEAST_0, AT_LEAST_1 = AtLeast(0), AtLeast(1)


@dataclass(frozen=True, slots=True)
class TrainKey(Key):
    """A key of a training. Of a `free` one a run that goes on may have another value: it changes time, or rounding."""

    free: bool = False
    file: bool = False  # it names a file, which is found again from any folder


def keys_in(group: str) -> Callable[..., TrainKey]:
    def make(help: str, check: KeyCheck = ANY, *, free: bool = False, file: bool = False) -> TrainKey:
        return TrainKey(check, help, group=group, free=free, file=file)

    return make
