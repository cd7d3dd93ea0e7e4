"""Megatron-Core's own MoE layer, its experts over all ranks of gloo, a training of a few steps.

torchrun --nproc-per-node=4 megatron_moe.py [steps] [tokens] [width]

The package is used as it is installed, its alltoall dispatcher too. What a CPU takes the place of: torch.cuda's device
and stream, on which Megatron copies its counts to the host as numpy's arrays, which it does for tensors of a GPU alone.
"""

import contextlib
import sys
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist

no_stream = SimpleNamespace(record_event=lambda: SimpleNamespace(synchronize=lambda: None))
torch.cuda.current_device, torch.cuda.current_stream = lambda: "cpu", lambda *_: no_stream
torch.cuda.stream = lambda _: contextlib.nullcontext()
from megatron.core import parallel_state
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe import moe_utils, token_dispatcher
from megatron.core.transformer.moe.moe_layer import MoELayer

moe_utils.te_general_gemm = None  # Megatron asks for it where there is no Transformer Engine, too
token_dispatcher.MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = no_stream
token_dispatcher.maybe_move_tensor_to_cpu = lambda x, as_numpy=False, **_: (
    x.numpy() if as_numpy and torch.is_tensor(x) else x
)

steps, tokens, width = (int(word) for word in [*sys.argv[1:], *("10", "64", "64")[len(sys.argv) - 1 :]])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
parallel_state.initialize_model_parallel(expert_model_parallel_size=size)
config = TransformerConfig(
    num_layers=1, hidden_size=width, num_attention_heads=4, ffn_hidden_size=2 * width, add_bias_linear=False,
    num_moe_experts=2 * size, moe_router_topk=2, moe_token_dispatcher_type="alltoall", moe_aux_loss_coeff=0.01,
    expert_model_parallel_size=size, use_cpu_initialization=True,
)  # fmt: skip
torch.manual_seed(0)
experts = get_moe_module_spec(use_te=False, num_experts=2 * size, moe_grouped_gemm=False)
layer = MoELayer(config, experts.submodules)
layer.set_layer_number(1)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
data = torch.Generator().manual_seed(rank)
for step in range(steps):
    start = time.perf_counter()
    x = torch.randn(tokens // 2, 2, width, generator=data)
    loss = (layer(x)[0] - x.roll(1, 2)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    for parameter in layer.router.parameters():
        dist.all_reduce(parameter.grad)
    optimizer.step()
    if rank == 0:
        print(f"step {step} loss {loss.item().hex()} took {1e3 * (time.perf_counter() - start):.3f} ms", flush=True)
dist.destroy_process_group()
