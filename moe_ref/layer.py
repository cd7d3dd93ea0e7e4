"""A whole layer: gate, dispatch, experts, combine. Here on one rank."""

from __future__ import annotations

import warnings
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from commbench.communicators.differentiation import refuse_transforms
from commbench.errors import UsageError
from moe_ref import dispatch as dispatchers
from moe_ref.experts import Experts
from moe_ref.gate import Gate
from moe_ref.graphs import PASSES, LayerGraphs
from moe_ref.layer_output import Output
from moe_ref.profiling import labelled
from moe_ref.routing import Routing

_BY_AUTOGRAD = "torch.autograd.grad; torch.func.grad and vjp of MoE on a CPU; in place of vmap, x of shape [.., D]"


def renamed(permute: str, dispatch: str | None) -> str:
    """Return the way to permute, with a warning where it was given by its old name, which stays for one release."""
    if dispatch is None:
        return permute
    warnings.warn("dispatch= is called permute= now; the old name goes with the next release", FutureWarning, 3)
    return dispatch


class BaseMoELayer(nn.Module):
    """Computes y = sum over a token's choices k of weight_k expert_k(token). Residual and norm are the caller's.

    shared: experts that every token has besides, added with weight 1 (DeepSeekMoE, arXiv 2401.06066): any module from
    [T, D] to [T, D], whose parameters are the same on all ranks.
    experts_are_replicated: whether ranks that have such a layer have the same experts, as data parallelism expects.
    """

    experts_are_replicated: ClassVar[bool] = True
    transforms: ClassVar[frozenset[str]] = frozenset()  # of torch.func, which the layer can be under

    def __init__(self, gate: Gate, experts: Experts, permute: str, shared: nn.Module | None = None) -> None:
        super().__init__()
        if gate.width != experts.width:
            raise UsageError(f"a gate of width {gate.width} with experts of width {experts.width}", hint="one D")
        self.gate, self.experts = gate, experts
        self.dispatcher = dispatchers.get(permute)
        self._permute = permute
        self.shared = shared
        self.graphs: LayerGraphs | None = None

    def extra_repr(self) -> str:
        """Say which dispatcher the layer has, and why."""
        device = next(self.experts.parameters()).device
        told = f"permute={dispatchers.describe(self._permute, device)}"
        return told if self.graphs is None else f"{told}, graphs={self.graphs}"

    def graph(self, passes: int | None = PASSES) -> Self:
        """Make passes from CUDA graphs from now on, where they can be, and return the layer.

        A pass is captured the first time that its shape comes, with its way back, and replayed from then on; what
        cannot be captured is eager, and `repr` says why. passes: how many are captured, each of which keeps its memory;
        what comes after these is eager. None: no graphs any more, and what was captured is freed.

        Raises `UsageError` for fewer than one.
        """
        self.graphs = None if passes is None else LayerGraphs(passes)
        return self

    def graph_unsupported(self) -> str:
        """Return in words why passes of this layer cannot be captured; "" where nothing is known against it."""
        return ""

    def graph_settings(self) -> str:
        """Return what may be set anew and is a part of what is captured."""
        return ""

    def forward(self, x: Tensor, padding: Tensor | None = None, *, generator: torch.Generator | None = None) -> Output:
        """Check the input, and run the layer on its tokens.

        x: [.., D], any leading shape. padding: bool [..], true for padding. generator: of the gate's draws.

        Raises `UsageError` for shapes that do not fit, with both.
        """
        able = self.transforms if x.device.type == "cpu" else ()
        refuse_transforms(f"{type(self).__name__} on {x.device.type}", _BY_AUTOGRAD, but=able)
        if x.dim() < 1 or x.shape[-1] != self.gate.width:
            raise UsageError(f"input of shape {list(x.shape)} for a layer of width {self.gate.width}",
                             hint=f"[.., {self.gate.width}]")  # fmt: skip
        if padding is not None and padding.shape != x.shape[:-1]:
            raise UsageError(f"a padding mask of shape {list(padding.shape)} for input of shape {list(x.shape)}",
                             hint=f"{list(x.shape[:-1])}, true for padding")  # fmt: skip
        if self.graphs is not None and not torch.compiler.is_compiling():
            found = self.graphs.forward(self, x, padding, generator)
            if found is not None:
                return found
        return self.eager(x, padding, generator)

    def eager(self, x: Tensor, padding: Tensor | None = None, generator: torch.Generator | None = None) -> Output:
        """Make a pass without a graph, on what `forward` has checked."""
        padding_T = None if padding is None else padding.reshape(-1)
        x_TD = x.reshape(-1, self.gate.width)
        y_TD, routing = self.run(x_TD, padding_T, generator)
        if self.shared is not None:
            with labelled("moe::shared"):
                shared_TD = self.shared(x_TD)
            y_TD = y_TD + (shared_TD if padding_T is None else shared_TD.masked_fill(padding_T[:, None], 0))
        return Output(y_TD.view(x.shape), routing)

    def run(self, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Routing]:
        """Return y [T, D] and the routing of tokens [T, D]."""
        raise NotImplementedError


class MoE(BaseMoELayer):
    """The layer on one rank, which has all experts. `moe_ref.DistributedMoE` is the same over ranks."""

    transforms: ClassVar[frozenset[str]] = frozenset({"grad"})

    def __init__(
        self, gate: Gate, experts: Experts, *, permute: str = "auto", shared: nn.Module | None = None,
        dispatch: str | None = None,
    ) -> None:  # fmt: skip
        """permute: a name of `moe_ref.dispatch.TABLE`; `auto`: the fastest that runs here. shared: see the base class.

        dispatch: the old name of `permute`.
        Raises `UsageError` where gate and experts do not fit.
        """
        super().__init__(gate, experts, renamed(permute, dispatch), shared)
        if gate.config.experts != experts.experts:
            raise UsageError(f"a gate for {gate.config.experts} experts with {experts.experts} experts here",
                             hint="one rank has them all")  # fmt: skip

    def run(self, x_TD: Tensor, padding_T: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Routing]:
        with labelled("moe::gate"):
            routing = self.gate(x_TD, padding_T, generator=generator)
        with labelled("moe::dispatch"):
            dispatcher = self.dispatcher(routing)
            buffer = dispatcher.dispatch(x_TD)
        with labelled("moe::experts"):
            out = self.experts(buffer) if routing.capacity is not None else self.experts(buffer, routing.counts_E)
        with labelled("moe::combine"):
            return dispatcher.combine(out), routing
