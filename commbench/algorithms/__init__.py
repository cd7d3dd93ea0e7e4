"""Algorithms: one *way* each to do a collective. A new one is one file and one line in `_ALL`."""

from __future__ import annotations

from commbench.algorithms.all_gather_tokens import AllGatherCombine, AllGatherDispatch
from commbench.algorithms.all_reduce_drop import AllReduceDrop
from commbench.algorithms.base import Algorithm
from commbench.algorithms.broadcast_chain import BroadcastChain
from commbench.algorithms.bruck import Bruck
from commbench.algorithms.counts_first import CountsFirst
from commbench.algorithms.direct import (
    DirectAllGather,
    DirectAllReduce,
    DirectAllToAll,
    DirectAllToAllV,
    DirectBroadcast,
    DirectPairs,
    DirectReduceScatter,
    DirectSendRecv,
)
from commbench.algorithms.drop_gather import DropGather
from commbench.algorithms.drop_gather_pipelined import DropGatherPipelined
from commbench.algorithms.drop_reduce_scatter import DropReduceScatter
from commbench.algorithms.duplicated import Duplicated
from commbench.algorithms.host_copy import DirectHostCopy
from commbench.algorithms.one_sided import SymmCopyEngine, SymmCopyEngineV, SymmStore, SymmStoreV
from commbench.algorithms.one_sided_rows import (
    SymmPerRankCombine,
    SymmPerRankDispatch,
    SymmSlotsCombine,
    SymmSlotsDispatch,
)
from commbench.algorithms.pairwise import Pairwise, PairwiseV
from commbench.algorithms.per_choice import PerChoiceCombine, PerChoiceDispatch
from commbench.algorithms.per_node import PerNodeCombine, PerNodeDispatch
from commbench.algorithms.per_node_pipelined import PerNodePipelinedCombine, PerNodePipelinedDispatch
from commbench.algorithms.per_rank import PerRankCombine, PerRankDispatch
from commbench.algorithms.reshard_send import ReshardSend
from commbench.algorithms.scatter_gather import ScatterGather
from commbench.algorithms.slots import SlotsCombine, SlotsDispatch
from commbench.algorithms.two_d_all_gather import TwoDAllGather
from commbench.algorithms.two_d_all_reduce import TwoDAllReduce
from commbench.algorithms.two_d_inter_first import TwoDInterFirst, TwoDInterFirstV
from commbench.algorithms.two_d_intra_first import TwoDIntraFirst, TwoDIntraFirstV
from commbench.algorithms.two_d_pipelined import TwoDPipelined
from commbench.algorithms.two_d_reduce_scatter import TwoDReduceScatter
from commbench.errors import unknown

_ALL: tuple[Algorithm, ...] = (
    DirectAllToAll(),
    Pairwise(),
    Bruck(),
    TwoDIntraFirst(),
    TwoDInterFirst(),
    TwoDPipelined(),
    SymmStore(),
    SymmCopyEngine(),
    DirectAllToAllV(),
    PairwiseV(),
    CountsFirst(),
    TwoDIntraFirstV(),
    TwoDInterFirstV(),
    SymmStoreV(),
    SymmCopyEngineV(),
    DirectAllGather(),
    TwoDAllGather(),
    DirectReduceScatter(),
    TwoDReduceScatter(),
    DirectAllReduce(),
    TwoDAllReduce(),
    DirectBroadcast(),
    DirectSendRecv(),
    DirectPairs(),
    DropGather(),
    DropGatherPipelined(),
    Duplicated(),
    AllReduceDrop(),
    DropReduceScatter(),
    DirectHostCopy(),
    ReshardSend(),
    BroadcastChain(),
    ScatterGather(),
    PerChoiceDispatch(),
    PerRankDispatch(),
    PerNodeDispatch(),
    PerNodePipelinedDispatch(),
    AllGatherDispatch(),
    SlotsDispatch(),
    SymmPerRankDispatch(),
    SymmSlotsDispatch(),
    PerChoiceCombine(),
    PerRankCombine(),
    PerNodeCombine(),
    PerNodePipelinedCombine(),
    AllGatherCombine(),
    SlotsCombine(),
    SymmPerRankCombine(),
    SymmSlotsCombine(),
)

TABLE: dict[tuple[str, str], Algorithm] = {(a.collective, a.name): a for a in _ALL}


def names(collective: str) -> list[str]:
    """The algorithms of one collective, the default first."""
    return [name for of, name in TABLE if of == collective]


def get(collective: str, name: str) -> Algorithm:
    algorithm = TABLE.get((collective, name))
    if algorithm is None:
        raise unknown(f"algorithm of {collective}", name, names(collective))
    return algorithm


def find(collective: str, name: str) -> Algorithm | None:
    """Return an algorithm; None where it is not loaded here, as those from outside are in a reader of results."""
    return TABLE.get((collective, name))


def parameters() -> dict[str, str]:
    """Every parameter of any algorithm, with its meaning: these are keys of a sweep."""
    return {key: text for algorithm in TABLE.values() for key, (_, text) in algorithm.params.items()}
