"""GPUs by name: what cards say of themselves. Defaults, for a first answer; a cluster's own numbers are better."""

from __future__ import annotations

from typing import NamedTuple

from commbench.strategy.draws import Efficiency
from commbench.strategy.tagged import Tagged


class KnownGpu(NamedTuple):
    """memory_gb: as the card is named. peak_tflops: dense bf16. memory_gbs: of its memory. intra_gbs: NVLink of a GPU,
    each way, as NCCL reaches it: about 0.8 of the nominal rate. efficiency: what products and memory reach there."""

    memory_gb: float
    peak_tflops: float
    memory_gbs: float
    intra_gbs: float
    efficiency: Efficiency = Efficiency()


# Of SimuMax's table of B200 operators (configs/system/b200_bf16_ceperm.json, release 1.2): the mean of products; of its
# 108 grouped products 0.482 of the peak, and 0.97 of the bandwidth for their weights, fit best (rms 22 %); scores, and
# permutations with other traffic.
_B200 = Efficiency(
    gemm=Tagged(0.488, "default", 1.25),
    grouped=Tagged(0.98, "default", 1.25),
    attention=Tagged(0.7, "default", 1.3),
    memory=Tagged(0.5, "default", 1.25),
    stream=Tagged(0.95, "default", 1.1),
)
GPUS: dict[str, KnownGpu] = {
    "a100": KnownGpu(80, 312, 2039, 240),
    "a800": KnownGpu(80, 312, 2039, 160),
    "h100": KnownGpu(80, 989, 3350, 360),
    "h800": KnownGpu(80, 989, 3350, 160),
    "h200": KnownGpu(141, 989, 4800, 360),
    "b200": KnownGpu(180, 2250, 8000, 720, _B200),
}
INTRA_ALPHA_US, INTER_ALPHA_US = 5.0, 10.0  # of a message, of NCCL between two GPUs: about
