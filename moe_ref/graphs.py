"""A layer's passes from CUDA graphs: captured once for each shape, replayed from then on, with gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref.captured_pass import CapturedPass, Eager, autocast_dtype
from moe_ref.capturing import Uncapturable
from moe_ref.gate import Gate
from moe_ref.layer_output import Output

PASSES = 4  # that a layer captures, if nothing is said
_MOVES = 8  # of a layer's parameters, after which no more is captured


class HasModules(Protocol):
    """A module, seen as what is in it."""

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Return the module, and all modules inside, with their names."""


class Graphable(Eager, HasModules, Protocol):
    """What a layer has that is asked before it is captured."""

    gate: Gate
    training: bool

    def graph_unsupported(self) -> str:
        """Return in words why passes of this layer cannot be captured; "" where nothing is known against it."""

    def graph_settings(self) -> str:
        """Return what may be set anew and is a part of what is captured."""

    def buffers(self) -> Iterator[Tensor]:
        """Return all buffers."""


class _Key(NamedTuple):
    """What a captured pass holds for."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    input_grad: bool
    padded: bool
    grad: bool
    training: bool
    autocast: torch.dtype | None
    settings: str
    parameters: tuple[tuple[int, bool], ...]


class LayerGraphs:
    """The captured passes of one layer."""

    def __init__(self, most: int) -> None:
        """most: passes that are captured. Each keeps its memory, as much as an eager one takes."""
        if most < 1:
            raise UsageError(f"passes={most} of a layer from graphs", hint="1 or more")
        self.most = most
        self.passes: list[tuple[_Key, CapturedPass]] = []
        self.replays = 0
        self.eager: Counter[str] = Counter()  # passes that were made eagerly, by the reason
        self._waits: dict[_Key, str] = {}
        self._moves = 0

    def __reduce__(self) -> tuple[type[LayerGraphs], tuple[int]]:
        """Copies have captured nothing: a copy of a layer has memory of its own."""
        return LayerGraphs, (self.most,)

    def __str__(self) -> str:
        told = [f"{len(self.passes)} of at most {self.most} captured, {self.replays} replays"]
        told += [f"{many} eager: {reason}" for reason, many in self.eager.items()]
        return "; ".join(told)

    def forward(
        self, layer: Graphable, x: Tensor, padding: Tensor | None, generator: torch.Generator | None
    ) -> Output | None:
        """Return what the layer makes of these tokens; None where the pass has to be made eagerly."""
        found, reason = None, unsupported(layer, x, padding, generator)
        if not reason:
            found, reason = self._pass(layer, _key(layer, x, padding), x, padding)
        if found is None:
            self.eager[reason] += 1
            return None
        self.replays += 1
        return found(x, padding)

    def _pass(self, layer: Graphable, key: _Key, x: Tensor, padding: Tensor | None) -> tuple[CapturedPass | None, str]:
        """Return one that may be replayed, or why there is none."""
        if key in self._waits:
            return None, self._waits[key]
        free = next((one for of, one in self.passes if of == key and one.free()), None)
        return self._capture(layer, key, x, padding) if free is None else (free, "")

    def _capture(
        self, layer: Graphable, key: _Key, x: Tensor, padding: Tensor | None
    ) -> tuple[CapturedPass | None, str]:
        # Where parameters have moved, nothing fits that was captured before.
        fit = [(of, one) for of, one in self.passes if of.parameters == key.parameters]
        self._moves += len(fit) < len(self.passes)
        self.passes = fit
        if self._moves > _MOVES:
            return None, "the layer's parameters move from pass to pass, as under FSDP"
        if len(self.passes) >= self.most:
            busy = any(of == key for of, _ in self.passes)
            why = "what they returned is still in use" if busy else f"none is for tokens {list(key.shape)}"
            return None, f"all {self.most} passes are captured, and {why}: graph(passes=N) has room for more"
        try:
            made = CapturedPass(layer, x, padding)
        except Uncapturable as waits:
            self._waits[key] = str(waits)
            return None, str(waits)
        self.passes.append((key, made))
        return made, ""


def unsupported(layer: Graphable, x: Tensor, padding: Tensor | None, generator: torch.Generator | None) -> str:
    """Return in words why this pass cannot be replayed; "" where nothing is known against it."""
    if not x.is_cuda:
        return f"tokens are on {x.device.type}, and CUDA graphs are a GPU's"
    if not x.numel():
        return "there are no tokens"
    if torch.cuda.is_current_stream_capturing():
        return "a graph around the layer is being captured, which takes the layer in"
    return (
        gate_unsupported(layer.gate, padded=padding is not None, seeded=generator is not None)
        or layer.graph_unsupported()
        or hooked(layer)
    )


def gate_unsupported(gate: Gate, *, padded: bool, seeded: bool) -> str:
    """Return in words why a pass with this gate cannot be replayed. seeded: its draws are from a given generator."""
    config, rule = gate.config, gate.config.capacity
    if rule.needs_load(training=gate.training):
        return "how many slots there are follows from the loads, for which the host waits: a capacity factor above 0"
    if rule.dropless and (padded or config.second == "random"):
        return "how many rows the buffer has is known on the GPU alone: no padding and no second=random with dropless"
    draws = config.order == "random" or config.second in ("random", "sampling")
    if draws or (gate.training and (config.jitter or config.dropout or config.noise)):
        return f"the gate draws at random{', from a generator of the program' if seeded else ''}"
    return ""


def hooked(module: HasModules) -> str:
    """Return which module has hooks, that would run when a pass is captured and never again."""
    for name, one in module.named_modules():
        hooks = (one._forward_hooks, one._forward_pre_hooks, one._backward_hooks, one._backward_pre_hooks)
        if name and any(hooks):  # the layer's own, which has no name, are called around every pass
            return f"{name} has hooks, which would run when the pass is captured and never again"
    return ""


def _key(layer: Graphable, x: Tensor, padding: Tensor | None) -> _Key:
    grad = torch.is_grad_enabled()
    tensors = (*layer.parameters(), *layer.buffers())
    return _Key(
        x.shape, x.dtype, x.device, grad and x.requires_grad, padding is not None, grad, layer.training,
        autocast_dtype(), layer.graph_settings(), tuple((one.data_ptr(), one.requires_grad) for one in tensors),
    )  # fmt: skip
