"""A reference Mixture-of-Experts layer that people can read, trust and copy, with faithful baselines beside it.

Shape suffixes, everywhere: T tokens of one rank, D model, H hidden, E experts, K choices of a token (top-k), C capacity
(slots of an expert for one rank's tokens), R rows of the dispatch buffer (E C, or for dropless the number of choices),
W ranks, E_g = E / W experts of one, q = W / E ranks that share one, N rows in general.
docs/guide/moe.md has the picture and the rules.
"""

from moe_ref.capacity import Capacity
from moe_ref.data_parallel import expert_parameters, ignore_experts_in_ddp
from moe_ref.distributed import DistributedMoE
from moe_ref.experts import FFN, SwiGLU
from moe_ref.gate import Gate
from moe_ref.gate_config import GateConfig
from moe_ref.grad_norm import clip_grad_norm_
from moe_ref.layer import MoE
from moe_ref.layer_output import Output
from moe_ref.routing import Routing
from moe_ref.sharding import shard

__all__ = [
    "FFN",
    "Capacity",
    "DistributedMoE",
    "Gate",
    "GateConfig",
    "MoE",
    "Output",
    "Routing",
    "SwiGLU",
    "clip_grad_norm_",
    "expert_parameters",
    "ignore_experts_in_ddp",
    "shard",
]
