"""per_choice: a row for each choice of a token, straight to the rank of the expert.

What a layer does that sorts its tokens by expert and calls an all-to-all. A token that several experts of a rank, or
of a node, want travels there as often. Back the same: each choice sends its row, which its token's rank weighs and
adds up.
"""

from __future__ import annotations

from commbench.algorithms.token_exchange import HoppingCombine, HoppingDispatch
from commbench.algorithms.token_plan import WORLD, Way

_WAY = Way((WORLD,), per_choice=True)


class PerChoiceDispatch(HoppingDispatch):
    name = "per_choice"
    way = _WAY
    demands = {"output": "expert"}


class PerChoiceCombine(HoppingCombine):
    name = "per_choice"
    way = _WAY
    demands = {"output": "expert"}
