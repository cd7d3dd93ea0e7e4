"""Blocks of transformers and layers of ours: the same choices, outputs and gradients; a model saved as HF reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch import nn

import commbench
from moe_ref import huggingface
from tests.support.ranks import on_gloo

pytestmark = pytest.mark.programs
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
         "vocab_size": 64, "max_position_embeddings": 64, "intermediate_size": 48}  # fmt: skip
ROUTED = {"num_experts_per_tok": 3, "moe_intermediate_size": 24}
MODELS: dict[str, Any] = {
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=8, num_experts_per_tok=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SMALL, **ROUTED, num_experts=8, norm_topk_prob=True, head_dim=8),
    "qwen3_moe, not normalised": lambda: transformers.Qwen3MoeConfig(
        **SMALL, **ROUTED, num_experts=8, norm_topk_prob=False, head_dim=8
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **SMALL, **ROUTED, n_routed_experts=8, n_group=4, topk_group=2, n_shared_experts=1, first_k_dense_replace=1,
        kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
}  # fmt: skip


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name]())
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if "experts" in key or "gate" in key:
                value.normal_(0, 0.3)
            if "e_score_correction_bias" in key:
                value.uniform_(-0.3, 0.3)
    return model


def words() -> torch.Tensor:
    return torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_a_block_and_its_layer_are_the_same(name: str) -> None:
    model = made(name)
    block = [module for module in model.modules() if huggingface.is_block(module)][-1]
    layer = huggingface.from_block(block)
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    theirs, ours = block(x), layer(x)
    _, _, chosen = block.gate(x.reshape(-1, 32))
    assert torch.equal(chosen.sort(1).values, ours.routing.experts_TK.sort(1).values)
    torch.testing.assert_close(ours.y, theirs, rtol=1e-5, atol=4e-6)  # values of up to 30
    draw = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(3))
    (one,), (other,) = (torch.autograd.grad((y * draw).sum(), [x], retain_graph=True) for y in (theirs, ours.y))
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    (theirs * draw).sum().backward()
    (ours.y * draw).sum().backward()
    width = layer.experts.hidden
    gate_up = block.experts.gate_up_proj.grad.transpose(1, 2)
    for found, wanted in (
        (layer.experts.gate_EDH, gate_up[:, :, :width]), (layer.experts.up_EDH, gate_up[:, :, width:]),
        (layer.experts.down_EHD, block.experts.down_proj.grad.transpose(1, 2)),
        (layer.gate.get_parameter("router.weight_ED"), block.gate.weight.grad),
    ):  # fmt: skip
        torch.testing.assert_close(found.grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_a_model_over_ranks_and_back(name: str, tmp_path: Path) -> None:
    """Logits are those of one process; after a step on two ranks, HF reads what is saved, with the same logits."""
    expected = made(name)(words()).logits.detach()

    def rank(transport: Any) -> None:
        model, ids = made(name), words()
        with commbench.communicator() as comm:
            blocks = huggingface.replace_blocks(model, comm)
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-6, atol=1e-6)
            loss = model(ids).logits.square().mean()
            loss.backward()
            with torch.no_grad():
                for layer in (m for m in model.modules() if isinstance(m, huggingface.HFBlock)):
                    for weight in layer.layer.experts.parameters():
                        weight -= 0.5 * weight.grad
                after = model(ids).logits
            huggingface.restore_blocks(model, blocks)
            if comm.rank == 0:
                model.save_pretrained(tmp_path)
                again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
                torch.testing.assert_close(again(ids).logits, after, rtol=1e-5, atol=1e-6)
                assert not torch.allclose(after, expected)

    on_gloo(2, rank)


@pytest.mark.parametrize("masked", [False, True])
def test_the_balance_loss_is_on_hfs_scale(masked: bool) -> None:
    model = made("mixtral")
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 10:] = 0
    seen = mask if masked else None
    wanted = model(words(), output_router_logits=True, attention_mask=seen).aux_loss
    huggingface.replace_blocks(model)
    model(words(), attention_mask=seen)
    routings = [block.routing for block in model.modules() if isinstance(block, huggingface.HFBlock)]
    torch.testing.assert_close(huggingface.load_balancing_loss(routings, seen), wanted)


def test_what_is_no_block_is_refused() -> None:
    with pytest.raises(commbench.errors.UsageError, match="Linear is not a Mixture-of-Experts block"):
        huggingface.from_block(nn.Linear(2, 2))
    with pytest.raises(commbench.errors.UsageError, match="Linear has no Mixture-of-Experts block"):
        huggingface.replace_blocks(nn.Linear(2, 2))
