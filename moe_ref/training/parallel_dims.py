"""Data x expert x tensor parallel: which ranks hold the same tokens, and which the same pieces.

W = G t ranks. The t consecutive ranks of a tensor-parallel group have the same tokens, and pieces of attention, FFN and
experts; the G ranks of equal tp_rank have the same pieces, but of experts, which are spread over the groups (DeepSpeed-
TED, Singh et al., arXiv 2303.06318, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

import commbench
from commbench.communicators.communicator import Communicator
from commbench.errors import UsageError
from moe_ref.training.instrumented_comm import CommMonitor, InstrumentedComm
from moe_ref.training.timers import Timers


@dataclass(frozen=True, slots=True)
class Comms:
    """Communicators of a rank.

    world: of all ranks. tp: of this rank's tensor-parallel group; None: it is alone there. ep: of the ranks of equal
    tp_rank in all groups, world itself without tp.
    """

    world: InstrumentedComm
    tp: InstrumentedComm | None
    ep: InstrumentedComm


@dataclass(frozen=True, slots=True)
class ParallelDims:
    """A rank's place in all groups, and its communicators.

    comms: for everything but expert layers, which have `moe`: the same communicators, whose waits are told apart.
    None: there is one rank, which has nobody to send to. ep_group: torch's, of `ep`; None: all ranks.
    """

    rank: int = 0
    size: int = 1
    tp_rank: int = 0  # in the tensor-parallel group
    tp_size: int = 1  # t
    monitor: CommMonitor | None = None
    comms: Comms | None = None
    moe: Comms | None = None
    ep_group: dist.ProcessGroup | None = None

    def all_reduce(self, numbers: Tensor, op: str = "sum") -> None:
        """Combine numbers of all ranks, in place. Collective. What measures is not itself measured."""
        if self.comms is not None:
            self.comms.world.comm.all_reduce(numbers, op=op)

    def close(self) -> None:
        """Close the communicators that were made here. Collective."""
        if self.comms is not None and self.comms.tp is not None:
            self.comms.tp.close()
            self.comms.ep.close()


def create(comm: Communicator | None, tp: int, timers: Timers) -> ParallelDims:
    """Make the groups. Collective over all ranks.

    Communicators of groups take commbench's defaults: profiles are of all ranks.

    Raises `UsageError` where `tp` does not divide the ranks.
    """
    size = 1 if comm is None else comm.size
    if size % tp:
        raise UsageError(f"tp={tp} does not divide {size} ranks", hint="a divisor of the ranks of a node")
    if comm is None or size == 1:
        return ParallelDims()
    monitor = CommMonitor(timers)
    if tp == 1:
        comms, moe = (_instrumented(monitor, comm, None, comm, of_moe=of_moe) for of_moe in (False, True))
        return ParallelDims(comm.rank, size, 0, 1, monitor, comms, moe)
    # All ranks make all groups, in one order: torch asks for it.
    inside = [dist.new_group(list(range(first, first + tp))) for first in range(0, size, tp)]
    across = [dist.new_group(list(range(tp_rank, size, tp))) for tp_rank in range(tp)]
    group, tp_rank = divmod(comm.rank, tp)
    pair = commbench.communicator(group=inside[group]), commbench.communicator(group=across[tp_rank])
    comms, moe = (_instrumented(monitor, comm, *pair, of_moe=of_moe) for of_moe in (False, True))
    return ParallelDims(comm.rank, size, tp_rank, tp, monitor, comms, moe, across[tp_rank])


def _instrumented(
    monitor: CommMonitor, comm: Communicator, tp: Communicator | None, ep: Communicator, *, of_moe: bool
) -> Comms:
    return Comms(
        InstrumentedComm(comm, monitor, of_moe=of_moe),
        None if tp is None else InstrumentedComm(tp, monitor, of_moe=of_moe),
        InstrumentedComm(ep, monitor, of_moe=of_moe),
    )
