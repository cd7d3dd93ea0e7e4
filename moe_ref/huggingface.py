"""Blocks of Hugging Face's Mixture-of-Experts models as layers of ours, over ranks or on one, and back.

transformers is not imported: a block is known by what it has, so that models which share its shape fit too (Mixtral,
Qwen2-MoE's and Qwen3-MoE's, DeepSeek-V3's of transformers 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from commbench.communicators.base import CommLike
from commbench.errors import UsageError
from moe_ref.capacity import Capacity
from moe_ref.distributed import DistributedMoE
from moe_ref.experts import SwiGLU
from moe_ref.gate import Gate
from moe_ref.gate_config import GateConfig
from moe_ref.layer import MoE
from moe_ref.routing import Routing

_NEEDED = (
    "gate.weight [E, D], gate.top_k, experts.gate_up_proj [E, 2H, D], experts.down_proj [E, D, H] with silu, and"
    " shared_experts or none"
)


class HFBlock(nn.Module):
    """Stands in a model where a block stood: tokens [.., D] in, the layer's output [.., D] out."""

    def __init__(self, layer: MoE | DistributedMoE) -> None:
        super().__init__()
        self.layer = layer
        self.routing: Routing | None = None  # of the last pass

    def forward(self, hidden_states: Tensor) -> Tensor:
        out = self.layer(hidden_states)
        self.routing = out.routing
        y: Tensor = out.y.to(hidden_states.dtype)
        return y


def is_block(module: nn.Module) -> bool:
    """Return whether a module has a router and experts as Hugging Face's blocks have them."""
    gate, experts = getattr(module, "gate", None), getattr(module, "experts", None)
    return all(hasattr(gate, name) for name in ("weight", "top_k")) and all(
        hasattr(experts, name) for name in ("gate_up_proj", "down_proj")
    )


def from_block(block: nn.Module, comm: CommLike | None = None, **options: Any) -> MoE | DistributedMoE:
    """Return a layer with copies of a block's weights; over ranks, each has its part of the experts.

    comm: of all ranks that share the experts, each of which has the whole block; None: one rank has them all. options:
    of `MoE` or `DistributedMoE`. No token is dropped, as none is there. Raises `UsageError` for what is no such block.
    """
    if not is_block(block):
        raise UsageError(f"{type(block).__name__} is not a Mixture-of-Experts block that is known", hint=_NEEDED)
    router, theirs = _part(block, "gate"), _part(block, "experts")
    (total, width), weight = router.weight.shape, theirs.gate_up_proj
    one = torch.ones(1)
    if weight.dim() != 3 or weight.shape[2] != width or not torch.equal(theirs.act_fn(one), functional.silu(one)):
        raise UsageError(f"experts of shape {list(weight.shape)} and {theirs.act_fn}", hint=_NEEDED)
    gate = Gate(width, _config(router, total)).to(weight.device)
    shared = getattr(block, "shared_experts", None)
    if getattr(block, "shared_expert", None) is not None:
        raise UsageError(
            "a shared expert with a gate of its own", hint="wrap both in a module, as shared= of the layer"
        )
    size, rank = (1, 0) if comm is None else (comm.size, comm.rank)
    if total % size:
        raise UsageError(f"experts={total} do not divide among {size} ranks", hint="a divisor of the experts")
    experts = SwiGLU(total // size, width, weight.shape[1] // 2, dtype=weight.dtype).to(weight.device)
    layer = MoE(gate, experts, shared=shared, **options) if comm is None else DistributedMoE(
        gate, experts, comm, shared=shared, **options
    )  # fmt: skip
    with torch.no_grad():
        gate.get_parameter("router.weight_ED").copy_(router.weight)
        if gate.expert_bias_E is not None:
            gate.expert_bias_E.copy_(router.e_score_correction_bias)
        own = slice(rank * experts.experts, (rank + 1) * experts.experts)
        gate_up_EHD = weight[own].transpose(1, 2)
        experts.gate_EDH.copy_(gate_up_EHD[:, :, : experts.hidden])
        experts.up_EDH.copy_(gate_up_EHD[:, :, experts.hidden :])
        experts.down_EHD.copy_(theirs.down_proj[own].transpose(1, 2))
    return layer


@torch.no_grad()
def into_block(layer: MoE | DistributedMoE, block: nn.Module) -> None:
    """Write a layer's weights into the block that it was made of; over ranks, all of them call it, and all get all."""
    router, theirs, experts = _part(block, "gate"), _part(block, "experts"), layer.experts
    assert isinstance(experts, SwiGLU)
    router.weight.copy_(layer.gate.get_parameter("router.weight_ED"))
    if layer.gate.expert_bias_E is not None:
        router.e_score_correction_bias.copy_(layer.gate.expert_bias_E)
    whole = [_gathered(layer, weight) for weight in (experts.gate_EDH, experts.up_EDH, experts.down_EHD)]
    theirs.gate_up_proj.copy_(torch.cat(whole[:2], dim=2).transpose(1, 2))
    theirs.down_proj.copy_(whole[2].transpose(1, 2))


def replace_blocks(model: nn.Module, comm: CommLike | None = None, **options: Any) -> dict[str, nn.Module]:
    """Put an `HFBlock` in the place of each block of a model; return the blocks by name, which `restore_blocks` takes.

    Blocks leave the model with their weights: where memory is short, move what is returned to the meta device
    (`block.to("meta")`), and make it anew (`block.to_empty(device=..)`) before it is restored. Raises `UsageError` for
    a model without blocks.
    """
    found = {name: module for name, module in model.named_modules() if is_block(module)}
    if not found:
        raise UsageError(f"{type(model).__name__} has no Mixture-of-Experts block that is known", hint=_NEEDED)
    for name, block in found.items():
        model.set_submodule(name, HFBlock(from_block(block, comm, **options)))
    return found


def restore_blocks(model: nn.Module, blocks: dict[str, nn.Module]) -> None:
    """Put the blocks back, with the weights that the layers have now, so that `save_pretrained` writes what HF reads.

    Over ranks all call it; one of them saves.
    """
    for name, block in blocks.items():
        stands = model.get_submodule(name)
        assert isinstance(stands, HFBlock)
        into_block(stands.layer, block)
        model.set_submodule(name, block)


def load_balancing_loss(routings: Iterable[Routing | None], attention_mask: Tensor | None = None) -> Tensor:
    """Compute what transformers' `load_balancing_loss_func` does, of the last pass of all blocks together.

    E sum_e c_e m_e with c_e the choices of expert e per token and m_e its mean softmax score, over the tokens of all
    layers; K times `losses.gshard_all` of one layer. attention_mask: of any shape with as many elements as tokens, 0
    for padding. With gradient. Over ranks it is of this rank's tokens.
    """
    choices, sums, rows = [], [], []
    for routing in routings:
        if routing is None or routing.logits_TE is None:
            raise UsageError("a block without a routing", hint="call the model first")
        real_T = routing.logits_TE.new_ones(routing.tokens) if attention_mask is None else attention_mask.reshape(-1)
        real_T = real_T.to(torch.float32)
        chosen_E = real_T.new_zeros(routing.experts)
        each_TK = real_T[:, None].expand(-1, routing.top_k)
        choices.append(chosen_E.scatter_add(0, routing.experts_TK.flatten(), each_TK.flatten()))
        sums.append((routing.logits_TE.softmax(1).to(torch.float32) * real_T[:, None]).sum(0))
        rows.append(real_T.sum())
    many = torch.stack(rows).sum()
    chosen_E, score_E = torch.stack(choices).sum(0) / many, torch.stack(sums).sum(0) / many
    return len(score_E) * (chosen_E * score_E).sum()


def _part(block: nn.Module, name: str) -> Any:
    return getattr(block, name)


def _config(router: Any, experts: int) -> GateConfig:
    normalised = bool(getattr(router, "norm_topk_prob", True))
    if router.top_k == 1 and normalised:
        raise UsageError(
            "top_k=1 with weights divided by their sum", hint="all weights are 1 then, and the gate learns nothing"
        )
    plain: dict[str, Any] = {
        "experts": experts, "top_k": router.top_k, "capacity": Capacity("dropless"),
        "normalise": "before" if normalised else "never", "losses": (),
    }  # fmt: skip
    if not hasattr(router, "e_score_correction_bias"):
        return GateConfig(**plain)
    return GateConfig(
        **plain, score="sigmoid", expert_bias=True, expert_groups=router.num_group, group_limit=router.topk_group,
        route_scale=router.routed_scaling_factor,
    )  # fmt: skip


def _gathered(layer: MoE | DistributedMoE, weight: Tensor) -> Tensor:
    """Return a weight of all ranks' experts."""
    if isinstance(layer, MoE):
        return weight.detach()
    out = weight.new_empty((layer.comm.size * len(weight), *weight.shape[1:]))
    layer.comm.all_gather(out, weight.detach().contiguous())
    return out
