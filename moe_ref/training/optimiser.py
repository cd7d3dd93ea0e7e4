"""AdamW over replicated and sharded parameters, its states of replicated ones spread over the ranks (ZeRO-1).

ZeRO-1 is torch's ZeroRedundancyOptimizer (ZeRO, arXiv 1910.02054, stage 1): each replicated parameter is one rank's to
update, and that rank sends it to the others. Its states are whole tensors on one rank, so a checkpoint holds them by
name and any number of ranks can take them up again. Experts are on one rank as they are, and so are their states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from commbench.training import TrainConfig

Named = Sequence[tuple[str, nn.Parameter]]
_MOMENTS = ("exp_avg", "exp_avg_sq")


def rate(config: TrainConfig, step: int) -> float:
    """The learning rate of step 1, 2, ..: a line up to `lr` at step `warmup`, then half a cosine to lr_end x lr."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.lr * (config.lr_end + (1 - config.lr_end) * (1 + math.cos(math.pi * done)) / 2)


class Optimiser:
    def __init__(self, config: TrainConfig, replicated: Named, sharded: Named) -> None:
        """Matrices decay, vectors do not (biases, norms, the experts' biases)."""
        self._names = {parameter: name for name, parameter in (*replicated, *sharded)}
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": 1e-8}
        if any(parameter.is_cuda for parameter in self._names):
            options["fused"] = True  # else it makes copies of all states at once
        groups = _groups((p for _, p in replicated), config.weight_decay)
        if config.zero and ranks > 1:
            from torch.distributed.optim import ZeroRedundancyOptimizer  # a third of a second, and warnings

            zero: Any = ZeroRedundancyOptimizer(groups, torch.optim.AdamW, **options)
            self._all, self._owned = [zero], [zero.optim]
        else:
            adam = torch.optim.AdamW(groups, **options)
            self._all, self._owned = [adam], [adam]
        if sharded:
            own = torch.optim.AdamW(_groups((p for _, p in sharded), config.weight_decay, experts=True), **options)
            self._all.append(own)
            self._owned.append(own)

    def step(self, rate: float) -> None:
        """Collective with ZeRO-1."""
        for optimiser in self._all:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()

    def states(self) -> dict[str, dict[str, Tensor]]:
        """By parameter's name, of those that this rank updates and has updated: both moments, of its shape."""
        return {
            self._names[parameter]: {moment: optimiser.state[parameter][moment] for moment in _MOMENTS}
            for optimiser in self._owned
            for parameter in _parameters(optimiser)
            if optimiser.state.get(parameter)
        }

    def owned(self) -> list[str]:
        """Names of the parameters that this rank updates."""
        return [self._names[parameter] for optimiser in self._owned for parameter in _parameters(optimiser)]

    def load(self, states: dict[str, dict[str, Tensor]], step: int) -> None:
        """What `states` gave, of the parameters that this rank updates now, after `step` steps."""
        for optimiser in self._owned:
            for parameter in _parameters(optimiser):
                found = {moment: states[self._names[parameter]][moment].to(parameter.device) for moment in _MOMENTS}
                # Fused AdamW counts steps on the GPU, the other one on the CPU.
                count = torch.tensor(float(step), device=parameter.device if parameter.is_cuda else "cpu")
                optimiser.state[parameter] = {"step": count, **found}


def _groups(parameters: Iterable[nn.Parameter], decay: float, *, experts: bool = False) -> list[dict[str, Any]]:
    vector = 2 if experts else 1  # experts' vectors are [E, H] and [E, D]
    by_kind: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        by_kind[parameter.dim() > vector].append(parameter)
    return [
        {"params": members, "weight_decay": decay if decays else 0.0} for decays, members in by_kind.items() if members
    ]


def _parameters(optimiser: Any) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
