"""Collectives: *what* is computed. A new one is one file and one line in `TABLE`."""

from __future__ import annotations

from commbench.collectives.all_to_all import AllToAll
from commbench.collectives.base import Collective
from commbench.errors import unknown

TABLE: dict[str, Collective] = {
    "all_to_all": AllToAll(),
}


def get(name: str) -> Collective:
    if name not in TABLE:
        raise unknown("collective", name, TABLE)
    return TABLE[name]
