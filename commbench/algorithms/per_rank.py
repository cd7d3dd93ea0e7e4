"""per_rank: a row for each rank that has an expert of the token, with the list of its experts.

Top-k copies that go to one rank are one row there, which makes its own copies for its experts: of k choices among E
experts on W ranks, W (1 - C(E - E/W, k) / C(E, k)) rows are left. Back, each rank adds up, with their weights, what its
experts made of a token, and sends one row.
"""

from __future__ import annotations

from commbench.algorithms.token_exchange import HoppingCombine, HoppingDispatch
from commbench.algorithms.token_plan import WORLD, Way

_WAY = Way((WORLD,))


class PerRankDispatch(HoppingDispatch):
    name = "per_rank"
    way = _WAY


class PerRankCombine(HoppingCombine):
    name = "per_rank"
    way = _WAY
