"""The collectives as differentiable functions. Each collective names its adjoint; algorithms know nothing of this.

What is differentiated is the sum of all ranks' losses. Where ranks of a tensor-parallel group hold the same tensor,
they compute the same loss, which counts once: gradients of replicated tensors are replicated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from commbench import collectives
from commbench.communicators.base import CommLike
from commbench.communicators.differentiation import refuse_transforms


def way_back(comm: CommLike) -> CommLike:
    """Return the communicator that carries gradients back: the same one, unless it has another for that."""
    other: CommLike = getattr(comm, "adjoint", comm)
    return other


def output_shape(collective: str, shape: tuple[int, ...], arguments: Mapping[str, Any], ranks: int) -> tuple[int, ...]:
    """Return the shape of what a collective makes of an input of `shape` on one of `ranks` ranks."""
    first, *rest = shape or (1,)
    match collective:
        case "all_gather":
            return (first * ranks, *rest)
        case "reduce_scatter":
            return (first // ranks, *rest)
        case "all_to_allv":
            return (sum(arguments["received"]), *rest)
    return shape


def adjoint_arguments(collective: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the adjoint of a collective is called with, where that was called with `arguments`."""
    swapped = dict(arguments)
    if collective == "all_to_allv":
        swapped |= {"received": arguments["sent"], "sent": arguments["received"]}
        if (matrix := arguments.get("matrix")) is not None:
            swapped["matrix"] = [list(column) for column in zip(*matrix, strict=True)]
    if collective == "tp_all_to_all":
        # The gradient of a sum is that of each summand, and it is the same on all ranks of the group.
        swapped["tp_input"] = "replicated"
    return swapped


class _Step(NamedTuple):
    """A collective with all its arguments but the tensors."""

    comm: CommLike
    collective: str
    shape: tuple[int, ...]  # of the input
    arguments: Mapping[str, Any] = {}

    def output_shape(self) -> tuple[int, ...]:
        return output_shape(self.collective, self.shape, self.arguments, self.comm.size)

    def adjoint(self) -> _Step:
        name = collectives.get(self.collective).adjoint
        return _Step(way_back(self.comm), name, self.output_shape(), adjoint_arguments(self.collective, self.arguments))

    def __call__(self, inp: torch.Tensor) -> torch.Tensor:
        out = torch.empty(self.output_shape(), dtype=inp.dtype, device=inp.device)
        getattr(self.comm, self.collective)(out, inp, **self.arguments)
        return out


class _Apply(torch.autograd.Function):
    """The gradient is the adjoint of the same function, so it can be differentiated in turn."""

    @staticmethod
    def forward(ctx: Any, inp: torch.Tensor, step: _Step) -> torch.Tensor:
        ctx.step = step
        return step(inp.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return _apply(gradient.contiguous(), ctx.step.adjoint()).reshape(ctx.step.shape), None


def _apply(inp: torch.Tensor, step: _Step) -> torch.Tensor:
    out: torch.Tensor = _Apply.apply(inp, step)  # type: ignore[no-untyped-call]
    return out


# A collective is one call to the compiler: it breaks the graph there, and does not look inside.
_apply_in_compiled = torch.compiler.disable(_apply)  # type: ignore[no-untyped-call]


class DifferentiableCollectives:
    """`out = comm.autograd.all_to_all(inp)`. All ranks also go back together: every rank's loss needs a gradient.

    Inputs are contiguous. Outputs are new tensors in plain memory.
    """

    def __init__(self, comm: CommLike) -> None:
        self._comm = comm

    def all_to_all(self, inp: torch.Tensor) -> torch.Tensor:
        """Exchange `size` equal blocks; the output has the shape of `inp`. Its adjoint is itself."""
        return self._call("all_to_all", inp)

    def all_to_allv(
        self, inp: torch.Tensor, received: Sequence[int], sent: Sequence[int], *,
        matrix: Sequence[Sequence[int]] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Exchange rows of dimension 0; `sum(received)` of them come. Its adjoint is itself with the counts swapped."""
        return self._call("all_to_allv", inp, received=list(received), sent=list(sent), matrix=matrix)

    def all_gather(self, inp: torch.Tensor) -> torch.Tensor:
        """Return `size` times the rows of `inp`. Its adjoint is reduce_scatter."""
        return self._call("all_gather", inp)

    def reduce_scatter(self, inp: torch.Tensor) -> torch.Tensor:
        """Return the sum's part `rank`, of dimension 0, which `size` divides. Its adjoint is all_gather."""
        return self._call("reduce_scatter", inp)

    def all_reduce(self, inp: torch.Tensor) -> torch.Tensor:
        """Return the sum. Its adjoint is itself: every rank's loss depends on every rank's input."""
        return self._call("all_reduce", inp)

    def tp_all_to_all(self, inp: torch.Tensor, *, tp: int | None = None, tp_input: str = "replicated") -> torch.Tensor:
        """Exchange between tensor-parallel groups. Its adjoint is itself, between replicated tensors."""
        return self._call("tp_all_to_all", inp, tp=tp, tp_input=tp_input)

    def _call(self, collective: str, inp: torch.Tensor, **arguments: Any) -> torch.Tensor:
        refuse_transforms(f"{collective} over ranks", "torch.autograd.grad, with create_graph=True to go on from it")
        apply = _apply_in_compiled if torch.compiler.is_compiling() else _apply
        return apply(inp, _Step(self._comm, collective, tuple(inp.shape), arguments))
