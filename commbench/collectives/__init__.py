"""Collectives: *what* is computed. A new one is one file and one line in `_ALL`."""

from __future__ import annotations

from commbench.collectives.all_gather import AllGather
from commbench.collectives.all_to_all import AllToAll
from commbench.collectives.all_to_allv import AllToAllV
from commbench.collectives.base import Argument, Collective
from commbench.collectives.broadcast import Broadcast
from commbench.collectives.combine import TokenCombine
from commbench.collectives.dispatch import TokenDispatch
from commbench.collectives.host_copy import HostCopy
from commbench.collectives.pairs import Pairs
from commbench.collectives.reductions import AllReduce, ReduceScatter
from commbench.collectives.reshard import Reshard
from commbench.collectives.sendrecv import SendRecv
from commbench.collectives.tp_all_to_all import TpAllToAll
from commbench.errors import unknown

_ALL: tuple[Collective, ...] = (
    AllToAll(),
    AllToAllV(),
    AllGather(),
    ReduceScatter(),
    AllReduce(),
    Broadcast(),
    SendRecv(),
    Pairs(),
    TpAllToAll(),
    Reshard(),
    HostCopy(),
    TokenDispatch(),
    TokenCombine(),
)

TABLE: dict[str, Collective] = {collective.name: collective for collective in _ALL}
# What `all` stands for: what programs call. `pairs` looks at links, with many cases, `host_copy` at none between ranks;
# what is routed asks for a layer, `reshard` for meshes.
_ASKED_BY_NAME = ("pairs", "reshard", "host_copy")
EVERY = tuple(name for name, collective in TABLE.items() if name not in _ASKED_BY_NAME and not collective.routed)


def get(name: str) -> Collective:
    if name not in TABLE:
        raise unknown("collective", name, TABLE)
    return TABLE[name]


def arguments() -> dict[str, Argument]:
    """Every argument of any collective: these are keys of a sweep."""
    return {key: argument for collective in _ALL for key, argument in collective.arguments.items()}
