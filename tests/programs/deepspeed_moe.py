"""DeepSpeed's own MoE layer over 4 ranks of gloo, a training of a few steps; the package is used as it is installed.

torchrun --nproc-per-node=4 deepspeed_moe.py [steps] [tokens] [width]
"""

import os
import sys
import time

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE

steps, tokens, width = (int(word) for word in [*sys.argv[1:], "10", "64", "64"][:3])
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled at the first start
deepspeed.init_distributed("gloo", verbose=False)
rank, size = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)
torch.manual_seed(0)
expert = torch.nn.Sequential(torch.nn.Linear(width, 2 * width), torch.nn.ReLU(), torch.nn.Linear(2 * width, width))
layer = MoE(width, expert, num_experts=size, ep_size=size, k=1, capacity_factor=1.0, use_rts=False)
layer.set_deepspeed_parallelism()
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
data = torch.Generator().manual_seed(rank)
for step in range(steps):
    start = time.perf_counter()
    x = torch.randn(tokens, width, generator=data)
    out, balance, _ = layer(x)
    loss = (out - x.roll(1, 1)).square().mean() + 0.01 * balance
    optimizer.zero_grad()
    loss.backward()
    for parameter in layer.deepspeed_moe.gate.parameters():
        dist.all_reduce(parameter.grad)
    optimizer.step()
    if rank == 0:
        print(f"step {step} loss {loss.item().hex()} took {1e3 * (time.perf_counter() - start):.3f} ms", flush=True)
dist.destroy_process_group()
