"""HF Mixtral with random weights, sharded by FSDP2 over gloo, a training of a few steps; transformers as installed.

torchrun --nproc-per-node=4 mixtral_fsdp.py [steps] [tokens] [width]
"""

import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import MixtralConfig, MixtralForCausalLM

steps, tokens, width = (int(word) for word in [*sys.argv[1:], "10", "32", "64"][:3])
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.set_num_threads(1)
torch.manual_seed(0)
config = MixtralConfig(vocab_size=256, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
                       max_position_embeddings=tokens)  # fmt: skip
model = MixtralForCausalLM(config)
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
data = torch.Generator().manual_seed(rank)
for step in range(steps):
    start = time.perf_counter()
    ids = torch.randint(0, 256, (2, tokens), generator=data)
    loss = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if rank == 0:
        print(f"step {step} loss {loss.item().hex()} took {1e3 * (time.perf_counter() - start):.3f} ms", flush=True)
dist.destroy_process_group()
