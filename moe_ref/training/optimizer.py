"""AdamW over all parameters; the states of what several ranks have are spread over these (ZeRO-1).

ZeRO-1 is torch's ZeroRedundancyOptimizer (ZeRO, arXiv 1910.02054, stage 1): each such parameter is one rank's to
update, and that rank sends it to the others. Its states are whole tensors on one rank, so a checkpoint holds them by
name and any number of ranks can take them up again. Experts are on one rank as they are, and so are their states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from commbench.train.config import TrainConfig
from moe_ref.training.grad_buckets import Kind
from moe_ref.training.parallel_dims import ParallelDims

Named = Sequence[tuple[str, nn.Parameter]]
MOMENTS = ("exp_avg", "exp_avg_sq")


def rate(config: TrainConfig, step: int) -> float:
    """Return the rate of step 1, 2, ..: a line up to `lr` at step `warmup`, then half a cosine to lr_end x lr."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.lr * (config.lr_end + (1 - config.lr_end) * (1 + math.cos(math.pi * done)) / 2)


class DistributedOptimizer:
    """AdamW over all parameters of this rank, with ZeRO-1 where the settings ask for it."""

    def __init__(self, config: TrainConfig, model: Mapping[Kind, Named], dims: ParallelDims) -> None:
        """model: by kind, as for `GradBuckets`. Matrices decay, vectors do not (biases, norms, experts' biases)."""
        self._names = {parameter: name for named in model.values() for name, parameter in named}
        self._all: list[Any] = []
        self._owned: list[Any] = []
        options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": 1e-8}
        self._fused = any(parameter.is_cuda for parameter in self._names)
        if self._fused:
            options["fused"] = True  # else it makes copies of all states at once
        sharers = {"replicated": dims.size, "cut": dims.size // dims.tp_size, "expert": 1}
        for kind, named in model.items():
            if not named:
                continue
            groups = _groups(named, config.weight_decay, vector=2 if kind == "expert" else 1)
            if config.zero and sharers[kind] > 1:
                from torch.distributed.optim import ZeroRedundancyOptimizer  # a third of a second, and warnings

                process_group = dims.ep_group if kind == "cut" else None
                zero: Any = ZeroRedundancyOptimizer(groups, torch.optim.AdamW, process_group=process_group, **options)
                self._all.append(zero)
                self._owned.append(zero.optim)
            else:
                adam = torch.optim.AdamW(groups, **options)
                self._all.append(adam)
                self._owned.append(adam)

    def step(self, rate: float) -> None:
        """Update all parameters. Collective with ZeRO-1."""
        if self._fused:  # with the rate in fp32, as `step_at` has it
            rate = float(torch.tensor(rate, dtype=torch.float32))
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def step_at(self, rate: Tensor) -> None:
        """Update all parameters inside of a capture, at each replay by what `rate` holds then: fp32, on their GPU."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group |= {"lr": rate, "capturable": True}
            optimizer.step()
            for group in optimizer.param_groups:
                group["capturable"] = False  # torch warns of a step without a capture

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Return both moments by parameter's name, of those that this rank updates and has updated."""
        return {
            self._names[parameter]: {moment: optimizer.state[parameter][moment] for moment in MOMENTS}
            for optimizer in self._owned
            for parameter in _parameters(optimizer)
            if optimizer.state.get(parameter)
        }

    def owned(self) -> list[str]:
        """List the names of the parameters that this rank updates."""
        return [self._names[parameter] for optimizer in self._owned for parameter in _parameters(optimizer)]

    def load(self, states: dict[str, dict[str, Tensor]], step: int) -> None:
        """Take up what `states` gave, of the parameters that this rank updates now, after `step` steps."""
        for optimizer in self._owned:
            for parameter in _parameters(optimizer):
                found = {moment: states[self._names[parameter]][moment].to(parameter.device) for moment in MOMENTS}
                # Fused AdamW counts steps on the GPU, the other one on the CPU.
                count = torch.tensor(float(step), device=parameter.device if parameter.is_cuda else "cpu")
                optimizer.state[parameter] = {"step": count, **found}


def _groups(named: Named, decay: float, *, vector: int) -> list[dict[str, Any]]:
    """vector: dimensions of what is one for each expert, or for the model."""
    by_kind: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        by_kind[parameter.dim() > vector and "bias" not in name].append(parameter)
    return [
        {"params": members, "weight_decay": decay if decays else 0.0} for decays, members in by_kind.items() if members
    ]


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
