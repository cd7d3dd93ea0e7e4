"""torchtitan's own DeepSeek-V3 in small, with its expert parallelism and its FSDP, a training of a few steps on gloo.

torchrun --nproc-per-node=4 torchtitan_moe.py [steps] [ep] [tokens] [width]

The package is used as it is installed. What a CPU takes the place of: the line with the device, and its attention by
FlexAttention, which has no backward pass on CPUs, by its ScaledDotProductAttention.
"""

import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torchtitan.tools.utils
from torch.distributed.fsdp import FSDPModule

torchtitan.tools.utils.device_type, torchtitan.tools.utils.device_module = "cpu", torch.cpu
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.utils import get_spmd_context, set_spmd_backend
from torchtitan.models import deepseek_v3
from torchtitan.models.common.attention import ScaledDotProductAttention

steps, ep, tokens, width = (int(word) for word in [*sys.argv[1:], *("10", "4", "64", "64")[len(sys.argv) - 1 :]])
dist.init_process_group("gloo")
torch.autograd.set_multithreading_enabled(False)  # as torchtitan's init_distributed does
torch.set_num_threads(1)
torch.manual_seed(0)
parallelism = ParallelismConfig(expert_parallel_degree=ep, spmd_backend="partial_dtensor")
dims = ParallelDims.from_config(parallelism, dist.get_world_size())
set_spmd_backend(parallelism.spmd_backend)

debug = deepseek_v3.model_registry("debugmodel")
one = debug.model.layers[1].attention.rope
layers = deepseek_v3._build_dsv3_layers(
    n_layers=2, n_dense_layers=1, dim=width, n_heads=2, q_lora_rank=0, kv_lora_rank=32, qk_nope_head_dim=16,
    qk_rope_head_dim=16, v_head_dim=16, mscale=0.7, dense_hidden_dim=width, moe_hidden_dim=width, num_experts=8,
    num_shared_experts=1, router_top_k=3, router_score_func="softmax", attn_backend="flex",
    moe_comm_backend="standard", non_blocking_capacity_factor=None, rope=replace(one, dim=16),
)  # fmt: skip
for layer in layers:
    layer.attention.inner_attention = ScaledDotProductAttention.Config()
config = replace(
    debug.model, vocab_size=256, dim=width, layers=layers, mtp_layers=[],
    tok_embeddings=replace(debug.model.tok_embeddings, num_embeddings=256, embedding_dim=width),
    norm=replace(debug.model.norm, normalized_shape=width),
    lm_head=replace(debug.model.lm_head, in_features=width, out_features=256),
)  # fmt: skip
config.update_from_config(config=SimpleNamespace(parallelism=parallelism))
with torch.device("meta"):
    model = config.build()
model = debug.parallelize_fn(model, parallel_dims=dims, training=TrainingConfig(mixed_precision_param="float32"),
                             parallelism=parallelism, compile_config=CompileConfig(enable=False), ac_config=None,
                             dump_folder="")  # fmt: skip
for module in model.modules():
    if isinstance(module, FSDPModule):
        module.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM
model.to_empty(device="cpu")
with torch.no_grad():
    model.init_weights(buffer_device=None)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
data = torch.Generator().manual_seed(dist.get_rank())
context = get_spmd_context(parallel_dims=dims)
for step in range(steps):
    start = time.perf_counter()
    ids = torch.randint(0, 256, (1, tokens + 1), generator=data)
    optimizer.zero_grad()
    with context():
        logits = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
    optimizer.step()
    if dist.get_rank() == 0:
        print(f"step {step} loss {loss.item().hex()} took {1e3 * (time.perf_counter() - start):.3f} ms", flush=True)
dist.destroy_process_group()
