"""slots: a fixed number of rows from each rank to each other, so that nobody has to be told how many come.

As `per_rank`, but each message has `slots` rows, of which some are empty: sizes are known before the routing is, for
the price of sending what is not there. What decoding does, with few tokens: with as many slots as a rank has tokens
none can be lacking. A slot that has no row says so, in each call anew.
"""

from __future__ import annotations

from commbench.algorithms.token_exchange import HoppingCombine, HoppingDispatch
from commbench.algorithms.token_plan import WORLD, Way
from commbench.collectives import routing
from commbench.spec import Spec

_PARAMS = {"slots": (0, "rows that each rank sends to each other, empty ones too; 0: as many as it has tokens")}


def _way(spec: Spec) -> Way:
    return Way((WORLD,), slots=spec.params["slots"] or routing.shape_of(spec).tokens)


def _lacking(spec: Spec) -> str:
    """Return in words what there is no slot for; "" if there are enough."""
    slots = _way(spec).slots
    if slots < 0:
        return f"slots={slots}: 0 are as many as a rank has tokens"
    rows = routing.counts_of(spec).ranks.copy()
    rows[range(spec.ranks), range(spec.ranks)] = 0
    source, target = divmod(int(rows.argmax()), spec.ranks)
    if rows.max() <= slots:
        return ""
    return f"slots={slots}: rank {source} has {rows.max()} tokens for experts of rank {target}"


class SlotsDispatch(HoppingDispatch):
    name = "slots"
    params = _PARAMS

    def way_of(self, spec: Spec) -> Way:
        return _way(spec)

    def unsupported(self, spec: Spec) -> str:
        return super().unsupported(spec) or _lacking(spec)


class SlotsCombine(HoppingCombine):
    name = "slots"
    params = _PARAMS

    def way_of(self, spec: Spec) -> Way:
        return _way(spec)

    def unsupported(self, spec: Spec) -> str:
        return super().unsupported(spec) or _lacking(spec)
