"""From settings to a model over ranks, and which of its parameters are whose."""

from __future__ import annotations

import torch
from torch import nn

from commbench.errors import UsageError
from commbench.training import TrainConfig
from moe_ref import schedules
from moe_ref.capacity import Capacity
from moe_ref.distributed import DistributedMoE
from moe_ref.experts import FFN, Experts
from moe_ref.gate import Gate
from moe_ref.lm.config import LMConfig
from moe_ref.lm.model import LM, MakeLayer, draws, fill, local
from moe_ref.schedules.base import Comm, Schedule
from moe_ref.sharding import shard
from moe_ref.training.checkpoint import Box

_DTYPES = {"fp32": None, "bf16": None, "fp64": torch.float64}  # of parameters: bf16 is autocast's


def lm_config(config: TrainConfig) -> LMConfig:
    """Raises `UsageError` for sizes that do not fit each other."""
    return LMConfig(
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        hidden=config.hidden,
        context=config.context,
        moe_freq=config.moe_freq,
        experts=config.experts,
        top_k=config.top_k,
        capacity=Capacity(config.capacity, config.capacity_factor),
        normalise=config.normalise,
        order=config.order,
        gate_dtype="fp64" if config.dtype == "fp64" else "fp32",
        activation=config.activation,
        tied=config.tied,
    )


def schedule(config: TrainConfig) -> Schedule:
    given = {name: getattr(config, name) for name in ("chunks", "groups", "r")}
    return schedules.get(config.schedule, **{name: value for name, value in given.items() if value is not None})


def build(config: TrainConfig, comm: Comm | None, device: torch.device | None = None) -> LM:
    """The model on this rank of `comm`; null: there is one rank, and all experts are on it.

    The first weights of experts are the same on any number of ranks.
    """
    settings = lm_config(config)
    make = local(settings, config.dispatch) if comm is None else _over_ranks(config, settings, comm)
    return LM(settings, make, seed=config.seed, dtype=_DTYPES[config.dtype]).to(device)


def _over_ranks(config: TrainConfig, settings: LMConfig, comm: Comm) -> MakeLayer:
    first, here, piece, pieces = place(settings.experts, comm.rank, comm.size)
    how = schedule(config)
    # A profile may want its own memory; what is stashed must not be written to by the next pass.
    kept = config.profile is not None and config.recompute != "stash"

    def make(layer: int, seed: int) -> nn.Module:
        gate = Gate(settings.width, settings.gate, generator=draws(seed, layer))
        experts = FFN(here, settings.width, settings.hidden, activation=settings.activation)
        fill(experts, seed, layer, first)
        if pieces > 1:
            shard(experts, piece, pieces)
        return DistributedMoE(
            gate, experts, comm, schedule=how, dispatch=config.dispatch, equal_tokens=True, keep_buffers=kept
        )

    return make


def place(experts: int, rank: int, ranks: int) -> tuple[int, int, int, int]:
    """This rank's first expert, how many it has, and which of how many pieces of it. Raises `UsageError`."""
    if experts >= ranks and experts % ranks == 0:
        here = experts // ranks
        return rank * here, here, 0, 1
    if ranks % experts == 0:
        pieces = ranks // experts
        return rank // pieces, 1, rank % pieces, pieces
    raise UsageError(f"experts={experts} and {ranks} ranks do not divide each other",
                     hint="a multiple of the ranks, or a divisor of them")  # fmt: skip


def boxes(model: LM, rank: int, ranks: int) -> dict[str, tuple[Box, bool]]:
    """By parameter's name, where this rank's tensor lies in that of the whole model, and whether it is an expert's."""
    found = {name: (Box.whole(parameter), False) for name, parameter in model.named_parameters()}
    first, here, piece, pieces = place(model.config.experts, rank, ranks)
    for prefix, module in model.named_modules():
        if isinstance(module, Experts):
            for name, parameter in module.named_parameters():
                shape, start = list(parameter.shape), [0] * parameter.dim()
                shape[0], start[0] = model.config.experts, first
                if pieces > 1:
                    cut = module.cut[name]
                    start[cut] = piece * shape[cut]
                    shape[cut] *= pieces
                assert len(parameter) == here
                found[f"{prefix}.{name}"] = Box(tuple(shape), tuple(start)), True
    return found


def parameters(model: LM) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """Those that are on every rank, and those of this rank's experts, by name."""
    experts = {
        id(parameter) for module in model.modules() if isinstance(module, Experts) for parameter in module.parameters()
    }
    named = list(model.named_parameters())
    return [item for item in named if id(item[1]) not in experts], [item for item in named if id(item[1]) in experts]


def layers(model: LM) -> list[DistributedMoE]:
    """The expert layers over ranks, in order; none on one rank."""
    return [module for module in model.modules() if isinstance(module, DistributedMoE)]
