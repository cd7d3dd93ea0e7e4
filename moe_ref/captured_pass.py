"""A captured pass of a layer, with its way back, and what replays it in the program's autograd graph.

A pass has memory of its own, which each replay of it writes to anew: the input, all between, what it returns, the
gradients. So it is taken again only when nobody can still see what the last replay left there: that one has gone back,
or nobody can go back any more, and no tensor of its output or gradients is held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from commbench.communicators.differentiation import ON_CPU, differentiated_once
from commbench.errors import UsageError
from moe_ref.capturing import capture, no_waiting
from moe_ref.layer_output import Output
from moe_ref.routing import Routing

_WARMUPS = 3


class Eager(Protocol):
    """All that is captured of a layer."""

    def eager(self, x: Tensor, padding: Tensor | None = None, generator: torch.Generator | None = None) -> Output:
        """Make a pass."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Return all parameters."""

    def modules(self) -> Iterator[torch.nn.Module]:
        """Return the layer, and all modules inside."""


def autocast_dtype() -> torch.dtype | None:
    """Return autocast's dtype on GPUs; None where it is off."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


class CapturedPass:
    """A captured pass, with its way back."""

    def __init__(self, layer: Eager, x: Tensor, padding: Tensor | None) -> None:
        """Raises `Uncapturable`."""
        grad, dtype = torch.is_grad_enabled(), autocast_dtype()
        self._x = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_(grad and x.requires_grad)
        self._padding = None if padding is None else padding.clone()
        self.parameters = [p for p in layer.parameters() if p.requires_grad] if grad else []
        self.by_input = self._x.requires_grad

        def forward() -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Output], list[Tensor]]:
            with _other_leaves(layer, self.parameters) as leaves, _cast_anew(dtype):
                outputs, whole = flat(layer.eager(self._x, self._padding))
            return outputs, whole, [self._x, *leaves] if self.by_input else leaves

        with torch.cuda.device(x.device), torch.autocast("cuda", enabled=False):
            _warm_up(forward, x.device)
            self._forward = torch.cuda.CUDAGraph()
            with capture(self._forward):
                outputs, self._whole, leaves = forward()
            self._needing = [number for number, output in enumerate(outputs) if output.requires_grad]
            self.constant = [number for number, output in enumerate(outputs) if not output.requires_grad]
            self._given = [torch.zeros_like(outputs[number], memory_format=torch.contiguous_format)
                           for number in self._needing]  # fmt: skip
            self._dirty = [False] * len(self._given)
            self._grads: list[Tensor | None] = []
            if self._needing:
                self._backward = torch.cuda.CUDAGraph()
                with capture(self._backward, self._forward):
                    needing = [outputs[number] for number in self._needing]
                    self._grads = list(torch.autograd.grad(needing, leaves, self._given, allow_unused=True))
                del needing
        self._outputs = [output.detach() for output in outputs]
        del outputs, leaves
        self._pending: Callable[[], object] = lambda: None
        # In the order of the outputs, then of the gradients; several may share one.
        seen = [*self._outputs, *(grad for grad in self._grads if grad is not None)]
        self._storages = [tensor.untyped_storage() for tensor in seen]
        self._unheld = self._counts()

    def free(self) -> bool:
        """Say whether a replay would change nothing that somebody can still see."""
        held = (many > none for many, none in zip(self._counts(own=True), self._unheld, strict=True))
        return self._pending() is None and not any(held)

    def __call__(self, x: Tensor, padding: Tensor | None) -> Output:
        if self._padding is not None:
            assert padding is not None
            self._padding.copy_(padding)
        if self._needing:
            outputs: Sequence[Tensor] = _Replay.apply(self, x, *self.parameters)  # type: ignore[no-untyped-call]
        else:
            outputs = self.replay(x)
        return self._whole(outputs)

    def replay(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, on the memory of the graph."""
        # Autograd takes a parameter's first gradient as it is. The way there may use that memory for something else.
        for parameter, grad in zip(self.parameters, self._own_grads(), strict=True):
            if _same_memory(parameter.grad, grad):
                assert parameter.grad is not None
                parameter.grad = parameter.grad.clone()
        with torch.no_grad():
            self._x.copy_(x)
        self._forward.replay()
        return tuple(output.detach() for output in self._outputs)

    def goes_back(self, token: object) -> None:
        """Keep the memory until `token` is gone."""
        self._pending = weakref.ref(token)

    def replay_back(self, given: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients of the inputs. given: those of the outputs that need one."""
        for number, (here, grad) in enumerate(zip(self._given, given, strict=True)):
            if grad is not None:
                here.copy_(grad)
            elif self._dirty[number]:
                here.zero_()
            self._dirty[number] = grad is not None
        self._backward.replay()
        return [None if grad is None else grad.detach() for grad in self._grads]

    def of_outputs(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Pick those of the outputs that need a gradient."""
        return [grads[number] for number in self._needing]

    def _own_grads(self) -> list[Tensor | None]:
        return self._grads[int(self.by_input) :] if self._grads else [None] * len(self.parameters)

    def _counts(self, *, own: bool = False) -> list[int]:
        """Count who holds each memory. own: without parameters whose gradient lies there."""
        counts = [torch._C._storage_Use_Count(storage._cdata) for storage in self._storages]
        if own:
            ours = Counter(
                parameter.grad.untyped_storage().data_ptr()
                for parameter, grad in zip(self.parameters, self._own_grads(), strict=True)
                if parameter.grad is not None and _same_memory(parameter.grad, grad)
            )
            counts = [many - ours[storage.data_ptr()] for many, storage in zip(counts, self._storages, strict=True)]
        return counts


def _same_memory(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()


class _Token:
    """Lives while a pass may go back."""


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, which: CapturedPass, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.which, ctx.token = which, _Token()
        which.goes_back(ctx.token)
        ctx.set_materialize_grads(False)
        outputs = which.replay(x)
        ctx.mark_non_differentiable(*(outputs[number] for number in which.constant))
        return outputs

    @staticmethod
    @differentiated_once("a pass from a CUDA graph", ON_CPU)
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.token is None:
            raise UsageError(
                "a layer's pass from a graph goes back a second time",
                hint="the first has used its memory anew; layer.graph(None) makes passes eagerly",
            )
        found = ctx.which.replay_back(ctx.which.of_outputs(grads))
        ctx.token = None
        return None, *([] if ctx.which.by_input else [None]), *found


def flat(output: Output) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Output]]:
    """Return all tensors of a layer's output, and what puts others in their places."""
    tensors = [output.y]
    fields = {field.name: _take(getattr(output.routing, field.name), tensors) for field in dataclasses.fields(Routing)}
    kind = type(output)
    return tensors, lambda others: kind(others[0], Routing(**{name: made(others) for name, made in fields.items()}))


def _take(value: Any, tensors: list[Tensor]) -> Callable[[Sequence[Tensor]], Any]:
    """Append the tensors of a field; return what makes the field of others."""
    if isinstance(value, Tensor):
        tensors.append(value)
        at = len(tensors) - 1
        return lambda others: others[at]
    if isinstance(value, Mapping):
        members = {name: _take(member, tensors) for name, member in value.items()}
        return lambda others: {name: member(others) for name, member in members.items()}
    if isinstance(value, tuple):
        parts = [_take(part, tensors) for part in value]
        return lambda others: tuple(part(others) for part in parts)
    return lambda others: value


def _warm_up(forward: Callable[[], tuple[list[Tensor], Any, list[Tensor]]], device: torch.device) -> None:
    """Make some passes as they will be captured; raise `Uncapturable` where the last one is found to wait."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for number in range(_WARMUPS):
            with no_waiting() if number == _WARMUPS - 1 else contextlib.nullcontext():
                outputs, _, leaves = forward()
                needing = [output for output in outputs if output.requires_grad]
                if needing:
                    torch.autograd.grad(needing, leaves, [torch.zeros_like(one) for one in needing], allow_unused=True)
            del outputs, needing, leaves
    torch.cuda.current_stream(device).wait_stream(stream)


@contextlib.contextmanager
def _other_leaves(layer: Eager, parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[Tensor]]:
    """Put tensors of the same memory in the parameters' places, as leaves of this pass alone.

    autograd has one node for the gradient of a parameter, which another pass under way may have made on its own stream:
    a capture would then wait for that stream, which it must not.
    """
    others = {parameter: parameter.detach().requires_grad_() for parameter in parameters}
    places = [(module, name, parameter) for module in layer.modules() for name, parameter in module._parameters.items()
              if parameter in others]  # fmt: skip
    try:
        for module, name, parameter in places:
            module._parameters[name] = others[parameter]  # type: ignore[assignment]
        yield list(others.values())
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def _cast_anew(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Cast weights inside, where autocast is on: casts that were made before would stay the same in all replays."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=dtype, cache_enabled=False)
