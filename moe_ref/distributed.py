"""A layer over ranks: each has its tokens, a copy of the gate, and its part of the experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from commbench import payloads
from commbench.communicators import routed
from commbench.communicators.base import CommLike
from commbench.communicators.with_payload import PayloadComm
from commbench.communicators.wrapper import bare
from commbench.errors import UsageError, unknown
from commbench.payloads import NONE
from moe_ref import rank_check, schedules
from moe_ref.comms import NoOpComm
from moe_ref.data_parallel import HolderCheck, ignore_experts_in_ddp
from moe_ref.experts import Experts, experts_per_rank
from moe_ref.gate import Gate
from moe_ref.kept_buffers import KeptBuffers
from moe_ref.layer import BaseMoELayer, renamed
from moe_ref.profiling import labelled
from moe_ref.routing import Routing
from moe_ref.schedules.base import Schedule
from moe_ref.schedules.deduplicated import PER_CHOICE, with_exchange
from moe_ref.sharding import Weights

SKIPS = ("communication", "experts")


class DistributedMoE(BaseMoELayer):
    """`MoE` over the ranks of a communicator, with the same capacity rule for each rank's tokens and the same result.

    Gate: the same parameters on all ranks, of which each gets the gradient of its own tokens: the trainer adds or
    averages them, as it does for what is not an expert. Experts: this rank's, whose gradient is that of the sum of all
    ranks' losses. Losses in the routing are of this rank's tokens; their mean over ranks is the trainer's.

    All ranks call it together, in the same mode, with tokens that need a gradient on all of them or on none, and go
    back together. Ranks may have no tokens at all.

    Under DDP and FSDP: `moe_ref.data_parallel`.
    """

    experts_are_replicated: ClassVar[bool] = False

    def __init__(
        self,
        gate: Gate,
        experts: Experts,
        comm: CommLike,
        *,
        tp: CommLike | None = None,
        ep: CommLike | None = None,
        schedule: str | Schedule = "sequential",
        permute: str = "auto",
        equal_tokens: bool = False,
        keep_buffers: bool = False,
        skip: str | None = None,
        shared: nn.Module | None = None,
        check_ranks: bool = False,
        payload: str = NONE,
        payload_back: str = NONE,
        exchange: str = PER_CHOICE,
        dispatch: str | None = None,
    ) -> None:
        """gate: for all E experts. experts: E / W of them on each rank; or where E < W, one that is cut into W / E
            pieces, of which this rank has number rank mod W / E (`moe_ref.sharding.shard`).
        comm: commbench's communicator of all ranks of the layer, with or without a profile.
        tp, ep: for tensor-parallel schedules: the communicator of consecutive ranks that have the same tokens, and of
            the ranks of equal rank in all such groups. Experts are then E / (W / tp) on each rank, cut into tp pieces.
        schedule: a name of `moe_ref.schedules.TABLE`, or one with parameters. It may be set anew at any time.
        permute: a name of `moe_ref.dispatch.TABLE`; `auto`: the fastest that runs here.
        equal_tokens: a promise that all ranks bring the same T each time. Without it they agree on the largest, which
            takes an all_reduce of 8 bytes and makes the host wait. Capacity factors of 0 and below need one too.
        keep_buffers: what all_to_alls bring lies in memory of `comm.empty`, the same in each pass, so that a profile's
            choices for registered or symmetric memory hold (`moe_ref.kept_buffers`). Each pass then goes back before
            the next.
        skip: `communication`: nothing is sent, and what arrives is what would have been sent; `experts`: they return
            what they get. For ablation: the result is wrong on purpose. It may be set anew at any time.
        check_ranks: before each pass ranks compare what must be equal on all of them (`moe_ref.rank_check`), for a
            program that hangs: one all_gather, and the host waits.
        shared: experts that every token has besides, the same on all ranks, as the gate is.
        payload, payload_back: how rows of tokens travel to the experts and back, and their gradients: `bf16`, `fp8`,
            `mxfp8`, `int8`. Gradients pass quantising as if it were not there. `none`: as they are.
        exchange: how often a token travels: `per_choice`, or once to each rank or node that has experts of it
            (`per_rank`, `per_node`), or to all (`all_gather`); `profile`: as the communicator's profile has it for so
            many tokens, which are equal on all ranks then. Others than `per_choice` are for dropless gates and the
            schedule `sequential`.
        dispatch: the old name of `permute`.
        Raises `UsageError` where experts do not divide among the ranks, or gate, experts and schedule do not fit.
        """
        super().__init__(gate, experts, renamed(permute, dispatch), shared)
        self.comms: dict[str, CommLike | None] = {"comm": comm, "tp": tp, "ep": ep}
        self._exchange = exchange
        self.equal_tokens, self.skip, self.check_ranks = equal_tokens, skip, check_ranks
        for name in (payload, payload_back):
            payloads.get(name)  # refuses what is none
        self.payload, self.payload_back = payload, payload_back
        self.kept_buffers = KeptBuffers() if keep_buffers else None
        self._check_experts()
        self._holders = HolderCheck()
        ignore_experts_in_ddp(self)
        self.schedule = schedule

    @property
    def schedule(self) -> Schedule:
        """The schedule of the next pass; it is set by name or as an object."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: str | Schedule) -> None:
        found = schedules.get(schedule) if isinstance(schedule, str) else schedule
        if self._exchange != PER_CHOICE:
            found = with_exchange(found, self._exchange, routed.layout_of(self.comm).nodes)
        found.check(self)
        self._schedule = found

    @property
    def skip(self) -> str | None:
        """What passes leave out, of `SKIPS`."""
        return self._skip

    @skip.setter
    def skip(self, skip: str | None) -> None:
        if skip is not None and skip not in SKIPS:
            raise unknown("skip", skip, SKIPS)
        if skip == "communication" and self._exchange != PER_CHOICE:
            raise UsageError(f"skip=communication with exchange={self._exchange}, which plans by what ranks tell",
                             hint="skip=experts, or exchange=per_choice")  # fmt: skip
        self._skip = skip

    @property
    def comm(self) -> CommLike:
        """The communicator of all ranks of the layer, or what sends nothing in its place."""
        comm = self._comm("comm")
        assert comm is not None
        return comm

    @property
    def token_comm(self) -> CommLike:
        """`comm`, as tokens travel over it: with the layer's payload."""
        if self.payload == self.payload_back == NONE:
            return self.comm
        return PayloadComm(self.comm, self.payload, backward=self.payload_back)

    @property
    def tp(self) -> CommLike | None:
        """The communicator of ranks that have the same tokens, if there are such."""
        return self._comm("tp")

    @property
    def ep(self) -> CommLike:
        """The communicator of the ranks of equal rank in all tp groups; without these it is `comm`."""
        return self._comm("ep") or self.comm

    def run(self, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Routing]:
        if x_TD.device.type != self.comm.device.type:
            raise UsageError(f"tokens on {x_TD.device} for a communicator on {self.comm.device}", hint="one device")
        comm = self.comms["comm"]
        assert comm is not None
        self._holders.check(self.experts, comm)
        if self.check_ranks:
            rank_check.check(
                bare(comm), self.gate, x_TD, equal_tokens=self.equal_tokens, send_dtype=self.send_dtype(),
                schedule=str(self.schedule),
            )  # fmt: skip
        if torch.compiler.is_compiling():
            found: tuple[Tensor, Routing] = _forward_in_compiled(self, x_TD, padding_T, generator)
            return found
        return self.schedule.forward(self, x_TD, padding_T, generator)

    def route(
        self,
        x_TD: Tensor,
        padding_T: Tensor | None = None,
        generator: torch.Generator | None = None,
        gate: Callable[..., Any] | None = None,
    ) -> Routing:
        """Route these tokens, with one C on all ranks. gate: in place of the layer's."""
        rule = self.gate.config.capacity
        agrees = not self.equal_tokens and rule.needs_tokens(training=self.training)
        with labelled("moe::gate"):
            most = self._largest(len(x_TD)) if agrees else None
            found: Routing = (gate or self.gate)(
                x_TD, padding_T, generator=generator, most_tokens=most, largest=self._largest
            )
        return found

    def agreements(self) -> int:
        """Count the numbers that ranks agree on in `route`."""
        rule = self.gate.config.capacity
        tokens = not self.equal_tokens and rule.needs_tokens(training=self.training)
        return int(tokens) + int(rule.needs_load(training=self.training))

    def graph_unsupported(self) -> str:
        comm = self.comms["comm"]
        assert comm is not None
        if comm.size > 1:
            return f"{comm.size} ranks exchange in it, which a graph of one cannot call: docs/guide/moe.md"
        if self.agreements():
            return "ranks agree on the tokens of a pass, for which the host waits: equal_tokens=True"
        if self.check_ranks:
            return "check_ranks compares ranks on the host"
        if self.kept_buffers is not None:
            return "keep_buffers has one memory for all passes"
        return ""

    def graph_settings(self) -> str:
        return f"{self.schedule}, skip={self.skip}"

    def cast_to_send(self, x_TD: Tensor) -> Tensor:
        """Return tokens as they are sent: in autocast's dtype, where there is one; experts take them in it anyway."""
        dtype = self.send_dtype()
        return x_TD if dtype is None else x_TD.to(dtype)

    def send_dtype(self) -> torch.dtype | None:
        """Return autocast's dtype; None without autocast."""
        kind = self.comm.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def apply_experts(self, x: Tensor, counts_E: Tensor | None = None, weights: Weights | None = None) -> Tensor:
        """Apply the experts to equal blocks, or to sorted rows with counts. weights: in place of their parameters."""
        if self.skip == "experts":
            return x
        with labelled("moe::experts"):
            if weights is None:
                out: Tensor = self.experts(x, counts_E)
            else:
                out = functional_call(self.experts, dict(weights), (x, counts_E))
        return out

    def _largest(self, number: int) -> int:
        agreed = torch.tensor([number], dtype=torch.int64, device=self.comm.device)
        self.comm.all_reduce(agreed, op="max")
        return int(agreed)

    def _comm(self, name: str) -> CommLike | None:
        comm = self.comms[name]
        return NoOpComm(comm) if comm is not None and self.skip == "communication" else comm

    def _check_experts(self) -> None:
        comm, tp, ep = (self.comms[name] for name in ("comm", "tp", "ep"))
        assert comm is not None
        total, here, ranks = self.gate.config.experts, self.experts, comm.size
        if (tp is None) != (ep is None) or (tp is not None and ep is not None and tp.size * ep.size != ranks):
            sizes = [None if group is None else group.size for group in (tp, ep)]
            raise UsageError(f"tp and ep of {sizes[0]} and {sizes[1]} ranks for a comm of {ranks}",
                             hint="neither, or both with tp x ep = comm")  # fmt: skip
        pieces = 1 if tp is None else tp.size
        piece = 0 if tp is None else tp.rank
        if tp is None and total < ranks:
            if ranks % total:
                raise UsageError(f"experts={total} do not share {ranks} ranks equally", hint="a divisor of the ranks")
            pieces = ranks // total
            piece = comm.rank % pieces
            wanted = 1
        else:
            wanted = experts_per_rank(total, ranks // pieces)
        if (here.experts, here.pieces) != (wanted, pieces) or here.piece != piece:
            raise UsageError(
                f"rank {comm.rank} of {ranks} has {here.experts} experts, piece {here.piece} of {here.pieces}, "
                f"of the gate's {total}",
                hint=f"{wanted} on each rank" + (f", piece {piece} of {pieces}: see shard" if pieces > 1 else ""),
            )


def _forward(
    layer: DistributedMoE, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Routing]:
    return layer.schedule.forward(layer, x_TD, padding_T, generator)


# What ranks exchange, in which order and of which shapes, is not the compiler's to see.
_forward_in_compiled = torch.compiler.disable(_forward)  # type: ignore[no-untyped-call]
