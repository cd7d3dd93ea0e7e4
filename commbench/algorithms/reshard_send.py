"""send: a holder of each part sends it to each rank that lacks it, all at once. What others are compared with."""

from __future__ import annotations

from collections.abc import Mapping

from commbench.algorithms.reshard_plan import BALANCE, PartHop, Planned, Sized, casts
from commbench.layout import Layout


class ReshardSend(Planned):
    name = "send"
    params = {"balance": BALANCE}

    def hops(self, sized: Sized, layout: Layout, params: Mapping[str, int]) -> list[PartHop]:
        return [
            PartHop("all", cast.sender, rank, cast.piece, slice(0, sized[cast.piece][1]))
            for cast in casts(sized, layout, balance=bool(params["balance"]))
            for rank in cast.receivers
        ]
