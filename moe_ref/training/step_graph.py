"""Steps of a trainer on one GPU from two CUDA graphs: the gradients of a batch, then the optimizer's step.

Between them the host learns the loss and the norm, as it does without graphs: it scales gradients that are too large,
and ends a training that has diverged before its weights change.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moe_ref.capturing import Uncapturable, capture, no_waiting
from moe_ref.graphs import gate_unsupported, hooked
from moe_ref.layer import BaseMoELayer
from moe_ref.training.optimizer import DistributedOptimizer
from moe_ref.training.parallel_dims import ParallelDims

EAGER_STEPS = 3  # before the capture: what is made at a first call is made then, and the last is watched for waits
WITHOUT = "graphs=true, and steps are made without: "  # how a note begins, of which the rest is the reason
_Compute = Callable[[Tensor, Tensor], Tensor]


def unsupported(dims: ParallelDims, device: torch.device, model: nn.Module) -> str:
    """Return in words why steps of this training cannot be captured; "" where nothing is known against it."""
    if device.type != "cuda":
        return f"ranks compute on {device.type}, and CUDA graphs are a GPU's: transport=nccl ranks_per_node=1"
    if dims.size > 1:
        return f"{dims.size} ranks: their exchanges are timed one by one, which a graph does not do: ranks_per_node=1"
    gates = (layer.gate for layer in model.modules() if isinstance(layer, BaseMoELayer))
    return next((reason for gate in gates if (reason := gate_unsupported(gate, padded=False, seeded=True))), "")


class StepGraph:
    """A step of one rank, whose batches have one shape."""

    def __init__(
        self, compute: _Compute, model: nn.Module, optimizer: DistributedOptimizer, experts: list[nn.Parameter],
        shape: tuple[int, int],
    ) -> None:  # fmt: skip
        """compute: from bytes and targets to numbers on the device, with gradients besides; it depends on nothing else.

        experts: parameters whose gradients each backward makes anew, where others' are always in one place.
        shape: of bytes and of targets, [B, S].
        """
        self._compute, self._model, self._optimizer = compute, model, optimizer
        self._experts, self._shape = experts, shape
        self._eager_steps = 0
        self._captured = False
        self.replays = 0

    def eager(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Compute without a graph. Raises `Uncapturable` in the last of the first steps, where that is found there."""
        self._eager_steps += 1
        if self._eager_steps != EAGER_STEPS:
            return self._compute(inputs, targets)
        if reason := hooked(self._model):  # as record_routing has them
            raise Uncapturable(reason)
        with no_waiting():
            return self._compute(inputs, targets)

    def ready(self, device: torch.device) -> bool:
        """Capture, once there have been steps enough; say whether steps can be replayed."""
        if self._captured or self._eager_steps < EAGER_STEPS:
            return self._captured
        self._inputs, self._targets = torch.zeros(2, *self._shape, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        for parameter in self._experts:
            parameter.grad = None  # so that backward makes them anew, in the graph's memory
        self._gradients, self._update = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with capture(self._gradients):
            self._numbers = self._compute(self._inputs, self._targets)
        self._made = [parameter.grad for parameter in self._experts]
        with capture(self._update, self._gradients):
            self._optimizer.step_at(self._rate)
        self._captured = True
        return True

    def replay(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Compute as `compute` does."""
        self._inputs.copy_(inputs)
        self._targets.copy_(targets)
        for parameter, gradient in zip(self._experts, self._made, strict=True):
            parameter.grad = gradient
        self._gradients.replay()
        self.replays += 1
        return self._numbers

    def update(self, rate: float) -> None:
        """Make the optimizer's step after `replay`."""
        self._rate.fill_(rate)
        self._update.replay()
