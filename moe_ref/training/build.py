"""Builds a model over ranks of settings, and says which of its parameters are whose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from commbench.communicators import routed_choice
from commbench.communicators.communicator import Communicator
from commbench.communicators.routed_choice import PROFILE, LayerAsk, RoutedChoice
from commbench.communicators.wrapper import bare
from commbench.errors import UsageError
from commbench.train.config import KEYS, TrainConfig
from moe_ref import schedules
from moe_ref.capacity import Capacity
from moe_ref.distributed import DistributedMoE
from moe_ref.experts import FFN, Experts
from moe_ref.gate import Gate
from moe_ref.lm.config import LMConfig
from moe_ref.lm.model import LM, MakeLayer, init_experts, local_experts, seeded_generator
from moe_ref.lm.tensor_parallel import TensorParallelModule
from moe_ref.schedules.base import Schedule
from moe_ref.schedules.chunked import Sequential
from moe_ref.schedules.deduplicated import PER_CHOICE, ByProfile, Deduplicated, with_exchange
from moe_ref.sharding import shard
from moe_ref.training.checkpoint import Box
from moe_ref.training.grad_buckets import Kind
from moe_ref.training.parallel_dims import ParallelDims

# Of tokens as they are sent, and their bytes.
_SENT = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
SENT_BYTES = {name: dtype.itemsize for name, dtype in _SENT.items()}
_DTYPES = {"fp32": None, "bf16": None, "fp64": torch.float64}  # of parameters: bf16 is autocast's


def lm_config(config: TrainConfig) -> LMConfig:
    """Return the model's settings. Raises `UsageError` for sizes that do not fit each other."""
    settings = {item.name: getattr(config, item.name) for item in dataclasses.fields(LMConfig) if item.name in KEYS}
    settings["capacity"] = Capacity(
        config.capacity, config.capacity_factor, multiple_of=config.capacity_multiple or config.tp
    )
    return LMConfig(**settings, gate_dtype="fp64" if config.dtype == "fp64" else "fp32")


def make_schedule(config: TrainConfig) -> Schedule:
    """Make the schedule of the expert layers, with the parameters and the exchange that were given.

    `exchange=profile` is `per_choice` where the layer can have no other.
    """
    given = {name: getattr(config, name) for name in ("chunks", "groups", "r", "tp_tokens")}
    name = config.settled().schedule
    assert name is not None
    found = schedules.get(name, **{key: value for key, value in given.items() if value is not None})
    found.check_payload(config)
    if config.exchange == PROFILE:
        simple = isinstance(found, Sequential) and found.r == 1 and config.tp == 1 and config.experts >= config.ranks
        return ByProfile(config.nodes) if simple and lm_config(config).gate.capacity.dropless else found
    if config.exchange != PER_CHOICE:
        found = with_exchange(found, config.exchange, config.nodes)
        if isinstance(found, Deduplicated):
            found.check_model(lm_config(config).gate.capacity, config.experts, config.ranks, config)
    return found


def settled_schedule(config: TrainConfig, choose: Callable[[LayerAsk], RoutedChoice]) -> Schedule:
    """Return the schedule with the exchange that `choose` says for its tokens, where that is left to a profile."""
    found = make_schedule(config)
    if not isinstance(found, ByProfile):
        return found
    tokens = config.cut(config.ranks // config.tp)[1] * config.context
    size = tokens * config.width * SENT_BYTES[config.dtype]
    ask = LayerAsk(top_k=config.top_k, experts=config.experts, size_bytes=size, payload=config.payload)
    return found.taking(choose(ask))


def build_model(config: TrainConfig, dims: ParallelDims, device: torch.device | None = None) -> LM:
    """Build the model on this rank. Where there is but one rank, all experts are on it.

    The first weights are the same on any number of ranks.
    """
    settings = lm_config(config)
    make = local_experts(settings, config.permute) if dims.moe is None else _over_ranks(config, settings, dims)
    model = LM(settings, make, seed=config.seed, dtype=_DTYPES[config.dtype])
    if dims.comms is not None and dims.comms.tp is not None:
        for module in model.modules():
            if isinstance(module, TensorParallelModule):
                module.shard(dims.comms.tp)
    return model.to(device)


def _over_ranks(config: TrainConfig, settings: LMConfig, dims: ParallelDims) -> MakeLayer:
    first, here, piece, pieces = expert_shard(settings.experts, dims)
    comms = dims.moe
    assert comms is not None
    world, sent = bare(comms.world), _SENT[config.dtype]

    def choose(ask: LayerAsk) -> RoutedChoice:
        if isinstance(world, Communicator):
            return world.choose_dispatch(ask, sent, config.payload_back)
        return routed_choice.choose(None, ask)

    how = settled_schedule(config, choose)
    exchange = how.exchange if isinstance(how, Deduplicated) else PER_CHOICE
    kept = config.profile is not None and exchange == PER_CHOICE  # which may want memory of its own

    def make(layer: int, seed: int) -> nn.Module:
        gate = Gate(settings.width, settings.gate, generator=seeded_generator(seed, layer))
        experts = FFN(here, settings.width, settings.hidden, activation=settings.activation)
        init_experts(experts, seed, layer, first)
        if pieces > 1:
            shard(experts, piece, pieces)
        return DistributedMoE(
            gate, experts, comms.world, tp=comms.tp, ep=None if comms.tp is None else comms.ep, schedule=how,
            permute=config.permute, equal_tokens=True, keep_buffers=kept, payload=config.payload,
            payload_back=config.payload_back, exchange=exchange,
        )  # fmt: skip

    return make


def expert_shard(experts: int, dims: ParallelDims) -> tuple[int, int, int, int]:
    """Return this rank's first expert, how many it has, and which of how many pieces of it. Raises `UsageError`."""
    groups, group = dims.size // dims.tp_size, dims.rank // dims.tp_size
    if experts >= groups and experts % groups == 0:
        here = experts // groups
        return group * here, here, dims.tp_rank, dims.tp_size
    if groups % experts == 0 and dims.tp_size == 1:
        pieces = groups // experts
        return group // pieces, 1, group % pieces, pieces
    if dims.tp_size > 1:
        raise UsageError(f"experts={experts} do not divide among {groups} groups of tp={dims.tp_size} ranks",
                         hint="a multiple of nodes x ranks_per_node / tp")  # fmt: skip
    raise UsageError(f"experts={experts} and {groups} ranks do not divide each other",
                     hint="a multiple of the ranks, or a divisor of them")  # fmt: skip


class ParamPlacement(NamedTuple):
    """Where a rank's part of a parameter of the model lies, and who has the same.

    box: where it lies in the whole one. kind: `replicated`: the same on all ranks; `cut`: a piece, which the ranks of
    equal tp_rank in all tensor-parallel groups have; `expert`: this rank's alone.
    """

    box: Box
    kind: Kind


def param_placements(model: LM, dims: ParallelDims) -> dict[str, ParamPlacement]:
    """Return by name what this rank has of each parameter."""
    found = {name: ParamPlacement(Box.whole(parameter), "replicated") for name, parameter in model.named_parameters()}
    for prefix, module in model.named_modules():
        if isinstance(module, Experts):
            first, here, piece, pieces = expert_shard(model.config.experts, dims)
            for name, parameter in module.named_parameters():
                shape, start = list(parameter.shape), [0] * parameter.dim()
                shape[0], start[0] = model.config.experts, first
                if pieces > 1:
                    cut = module.shard_dims[name]
                    start[cut] = piece * shape[cut]
                    shape[cut] *= pieces
                assert len(parameter) == here
                found[f"{prefix}.{name}"] = ParamPlacement(Box(tuple(shape), tuple(start)), "expert")
        if isinstance(module, TensorParallelModule) and module.tp is not None:
            for name, cut in module.shard_dims.items():
                shape, start = list(module.get_parameter(name).shape), [0] * module.get_parameter(name).dim()
                start[cut] = dims.tp_rank * shape[cut]
                shape[cut] *= dims.tp_size
                found[f"{prefix}.{name}"] = ParamPlacement(Box(tuple(shape), tuple(start)), "cut")
    return found


def group_by_kind(model: LM, placements: Mapping[str, ParamPlacement]) -> dict[Kind, list[tuple[str, nn.Parameter]]]:
    """Group all parameters by what others have of them."""
    found: dict[Kind, list[tuple[str, nn.Parameter]]] = {"replicated": [], "cut": [], "expert": []}
    for name, parameter in model.named_parameters():
        found[placements[name].kind].append((name, parameter))
    return found
