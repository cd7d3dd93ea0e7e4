"""What processors take for a layer's forward pass, by each draw: products, scores, traffic of memory, launches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from commbench.stats import Floats
from commbench.strategy.cluster import GpuCluster
from commbench.strategy.draws import Draws
from commbench.strategy.gemm_table import GemmTable
from commbench.strategy.memory import held, rows, sent, tokens
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.setting import Settings
from commbench.strategy.workload import Workload

# Kernels of a forward pass that the host launches, of attention with its norms, an FFN, and an expert layer without
# what exchanges: counted in profiles of moe_ref and Megatron, about.
_ATTENTION_KERNELS, _FFN_KERNELS, _MOE_KERNELS, _HEAD_KERNELS = 16, 6, 30, 10
# How often a pass reads or writes the rows of a layer beside its products: norms, residuals, biases, rope, transposes.
_ATTENTION_TRAVELS, _FFN_TRAVELS, _PERMUTED = 14, 6, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCompute:
    """Microseconds of a forward pass of one micro-batch, [d, n].

    attention, ffn, shared: with norms. local: gate and permutations of an expert layer. experts: of all rows at once.
    experts_chunked: of as many chunks as the schedule has, one after the other. scores: the part of attention that
    context parallelism hides its exchange behind. head: with loss. launch: what the host alone takes, of an attention,
    an FFN, an expert layer and the head.
    """

    attention: Floats
    scores: Floats
    ffn: Floats
    shared: Floats
    local: Floats
    experts: Floats
    experts_chunked: Floats
    selective: Floats
    head: Floats
    launch: dict[str, Floats]


def layer_compute(
    model: ModelShape, work: Workload, cluster: GpuCluster, settings: Settings, draws: Draws,
    table: GemmTable | None = None,
) -> LayerCompute:  # fmt: skip
    """Return what one micro-batch takes in each kind of layer. table: what products were measured to reach."""
    of, w = tokens(model, settings), work.itemsize
    mine, split = held(settings, of), settings.tp.astype(float)
    sending = sent(settings, of)
    skew = rank_skew(model, settings, draws)
    mine_rows = rows(model, settings, of, skew)
    crowd = cluster.crowd
    memory, stream = draws.memory_us[:, None] / crowd, draws.stream_us[:, None] / crowd
    hidden = model.expert_hidden / settings.etp

    def product(flops: Floats, m: Floats, n: Floats, k: Floats, grouped: bool = False) -> Floats:
        if table is not None and (rate := table.at(m, n, k, grouped=grouped)) is not None:
            # What one draw's products reach beside another's holds for measured ones too.
            return np.asarray(crowd * flops / (rate * (draws.flop_us / draws.flop_us[0])[:, None]))
        half = draws.half_rows[:, None]
        if grouped:  # what few rows cost is in the traffic of weights
            return np.asarray(crowd * flops / (draws.flop_us * draws.grouped)[:, None] * (n + half) / n)
        return np.asarray(crowd * flops / (draws.flop_us[:, None] * (m / (m + half)) * (n / (n + half))))

    def traffic(nbytes: Floats) -> Floats:
        return np.asarray(nbytes / memory)

    heads = model.heads * model.out_dim / split
    width = np.full(len(settings), float(model.width))
    scores = crowd * of * model.score_flops / split / draws.attention[:, None]
    attention = product(2 * of * model.attention_parameters / split, of, heads, width) + scores
    attention = attention + traffic((_ATTENTION_TRAVELS * mine * model.width + 4 * of * heads) * w)
    ffn = product(2 * of * model.ffn_parameters / split, of, model.hidden / split, width)
    ffn = ffn + traffic((_FFN_TRAVELS * mine * model.width + model.matrices * of * model.hidden / split) * w)
    shared = np.zeros((len(draws), len(settings)))
    if model.shared_hidden:
        flops = 2 * of * model.matrices * model.width * model.shared_hidden / split
        shared = product(flops, of, model.shared_hidden / split, width)
    flops = 2 * mine_rows * model.matrices * model.width * hidden
    activated = traffic(model.matrices * mine_rows * hidden * w)
    experts, chunked = np.zeros_like(shared), np.zeros_like(shared)
    local = np.zeros_like(shared)
    if model.moe_layers:
        here = np.maximum(model.experts / settings.ep, 1.0)
        each = mine_rows / here  # of one expert
        cut = np.where(settings.schedule_is("pipelined"), settings.chunks, 1)  # expert groups have whole experts' rows
        # Experts have few rows, so their weights count: read forward and backward, and gradients added to, backward.
        # A third of that for each of a pass's three products; chunks read them again.
        weights = here * model.matrices * model.width * hidden * (2 * w + 2 * work.grad_bytes) / 3
        experts = product(flops, each, hidden, width, grouped=True) + activated + weights / stream
        chunked = product(flops, each / cut, hidden, width, grouped=True) + activated + weights * cut / stream
        gate = product(2 * mine * model.width * model.experts, mine, width * 0 + model.experts, width)
        permuted = _PERMUTED * (model.top_k * sending + mine_rows) * model.width / 2 * w
        local = gate + traffic(permuted + _FFN_TRAVELS * mine * model.width * w)
    head = product(2 * of * float(model.embedding_parameters) / split, of, model.vocabulary / split, width)
    head = head + traffic(3 * of * model.vocabulary * (w + 4) / split)
    norms = traffic(_FFN_TRAVELS * mine * model.width * w) + activated
    each = draws.launch_us[:, None] * crowd
    launch = {"attention": each * _ATTENTION_KERNELS, "ffn": each * _FFN_KERNELS, "head": each * _HEAD_KERNELS,
              "moe": each * (_MOE_KERNELS + 4.0 * (settings.chunks - 1))}  # fmt: skip
    if cluster.cores:  # the host computes: what it launches comes on top, and runs ahead of nothing
        attention, ffn, head = attention + launch["attention"], ffn + launch["ffn"], head + launch["head"]
        local = local + launch["moe"]
        launch = {name: 0.0 * us for name, us in launch.items()}
    return LayerCompute(
        attention=attention, scores=scores, ffn=ffn, shared=shared, local=local, experts=experts,
        experts_chunked=chunked, selective=norms, head=head, launch=launch,
    )  # fmt: skip


def rank_skew(model: ModelShape, settings: Settings, draws: Draws) -> Floats:
    """Return rows of the fullest rank over their mean, [d, n].

    Of a rank with several experts the excess of the fullest is smaller, as its experts are not all the fullest: by the
    root of their number where loads of experts are independent. Of fixed slots it is 1.
    """
    if model.capacity_factor or not model.moe_layers:
        return np.ones((len(draws), len(settings)))
    share = np.sqrt(np.minimum(settings.ep, model.experts) / model.experts) * (settings.ep > 1)
    return np.asarray(1 + (draws.uneven - 1)[:, None] * share)
