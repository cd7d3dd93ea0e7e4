"""A communicator of a transport that does nothing: what is left is what a call costs before the library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

_DONE = type("Nothing", (), {"wait": lambda self: None})()


def nothing(*arguments: Any, **named: Any) -> Any:
    return _DONE


class Idle:
    """A transport of one rank, and its communicator: nothing moves."""

    name = "gloo"
    rank, size = 0, 4

    def __init__(self) -> None:
        import torch

        self.world: Any = self
        self.place = torch.device("cpu")

    all_to_all = all_to_allv = staticmethod(nothing)

    def ready(self, name: str, *arguments: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(nothing, *arguments, **named)

    def capturing(self) -> bool:
        return False

    def overlap(self, wanted: bool) -> None:
        return None

    def all_gather(self, values: Any) -> Any:
        return np.array([values] * self.size)

    def leave(self, *, captured: bool) -> None:
        return None


def communicator(transport: Any) -> Any:
    from commbench.communicators.communicator import Communicator
    from commbench.communicators.explain import CommunicatorInfo
    from commbench.communicators.select import Chooser
    from commbench.layout import Layout
    from commbench.profile.scope import Here
    from commbench.profile.table import Table
    from tests.support import profiles

    layout = Layout(1, transport.size)
    table = Table(profiles.profile(profiles.choice("all_to_all", "direct")), "s")
    here = Here(transport="gloo", nodes=1, ranks_per_node=transport.size)
    setting = CommunicatorInfo(here=here, layout=layout)
    return Communicator(transport, layout, Chooser("gloo", layout, table), setting)
