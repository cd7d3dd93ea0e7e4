"""Memory of a GPU: what a strategy takes of the most loaded stage of the pipeline. docs/reference/planner.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from commbench.stats import Floats
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.setting import DROP, DUPLICATE, SPLIT, Settings
from commbench.strategy.stages import StageLayers, stage_layers
from commbench.strategy.workload import Workload

GIB = 2.0**30
_SCORE_BYTES = 4  # of a logit or a router's score in fp32
# What a card's memory has beside tensors: the driver's context, NCCL's buffers, and what fragmentation loses. The
# constant is of one GPU; the part is of what tensors take.
CONTEXT_BYTES = 1.5 * GIB
FRAGMENTED = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """Bytes of a GPU on the most loaded stage, [n] each: what PyTorch's allocator holds at its peak.

    weights, gradients, optimizer: of parameters. activations: what micro-batches in flight keep for their backward
    pass. working: buffers of exchanges, gradients of activations and the layer that is redone, or the loss.
    """

    weights: Floats
    gradients: Floats
    optimizer: Floats
    activations: Floats
    working: Floats

    @property
    def total(self) -> Floats:
        return self.weights + self.gradients + self.optimizer + self.activations + self.working

    @property
    def needed(self) -> Floats:
        """Bytes that a card must have: of tensors, and beside them (`CONTEXT_BYTES`, `FRAGMENTED`)."""
        return self.total * (1 + FRAGMENTED) + CONTEXT_BYTES


def memory(model: ModelShape, work: Workload, settings: Settings, *, skew: float | Floats = 1.0) -> MemoryParts:
    """Return what each setting takes of a GPU, by part.

    skew: rows of the fullest rank over their mean, of a dropless layer; one for all settings or one for each.
    """
    stages = stage_layers(model, settings.pp)
    owned = parameters(model, work, settings, stages)
    weights, gradients, optimizer = _states(work, settings, owned)
    kept, working = _activations(model, work, settings, stages, skew)
    if work.all_reduces:  # gradients of experts are made in the backward pass, while activations go
        once = (micro_batches(work, settings) == 1)[:, None]
        late = work.grad_bytes * owned.experts
        kept = np.where(once, np.maximum(kept - late, 0.0), kept)
    parts = [weights, gradients, optimizer, kept, working]
    fullest = np.argmax(sum(parts), axis=1)[:, None]
    return MemoryParts(**{
        name: np.take_along_axis(part, fullest, axis=1)[:, 0]
        for name, part in zip(("weights", "gradients", "optimizer", "activations", "working"), parts, strict=True)
    })  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedParameters:
    """A GPU's parameters of each of three stages, [n, 3]: cut by tensor parallelism, the same on all ranks of a stage
    all the same, and of experts."""

    cut: Floats
    whole: Floats
    experts: Floats

    @property
    def all(self) -> Floats:
        return self.cut + self.whole + self.experts


def parameters(model: ModelShape, work: Workload, settings: Settings, stages: StageLayers) -> OwnedParameters:
    """Return a GPU's parameters of each of three stages."""
    layers = stages.dense + stages.moe
    dense = layers * model.attention_parameters + stages.dense * model.ffn_parameters
    dense = dense + stages.moe * model.shared_parameters
    # A tied head is the embedding where both are on one stage, and a copy of it else.
    head = np.where(model.tied & (settings.pp == 1)[:, None], 0.0, stages.head)
    embeddings = (stages.embedding + head) * model.embedding_parameters
    whole = np.where(work.whole_embedding & (settings.tp > 1)[:, None], embeddings, 0.0)
    experts = stages.moe * float(model.experts * model.expert_parameters)
    return OwnedParameters(cut=(dense + embeddings - whole) / settings.tp[:, None], whole=whole,
                           experts=experts / (settings.etp * settings.ep)[:, None])  # fmt: skip


def micro_batches(work: Workload, settings: Settings) -> Floats:
    """Return the micro-batches that a rank makes in a step, [n]."""
    return work.batch / (settings.dp * settings.micro_batch)


def tokens(model: ModelShape, settings: Settings) -> Floats:
    """Return the tokens of a micro-batch that a tensor-parallel group has, [n]."""
    return np.asarray(settings.micro_batch * model.context / settings.cp, dtype=float)


def held(settings: Settings, of: Floats) -> Floats:
    """Return how many of the group's tokens a rank has outside of products: a part with sequence parallelism."""
    return np.where(settings.tokens_are(SPLIT), of / settings.tp, of)


def sent(settings: Settings, of: Floats) -> Floats:
    """Return of how many of the group's tokens a rank sends the rows: all of them where ranks send duplicates."""
    return np.where(settings.tokens_are(DUPLICATE), of, of / settings.tp)


def rows(model: ModelShape, settings: Settings, of: Floats, skew: float | Floats = 1.0) -> Floats:
    """Return rows that a rank's experts compute, of `of` tokens of a tensor-parallel group.

    Ranks that share an expert (etp) have all the rows of each other.
    """
    factor = model.capacity_factor or skew
    shared = np.where(settings.tokens_are(SPLIT), settings.etp, 1)
    per_rank = np.where(settings.tokens_are(SPLIT), of / settings.tp, np.where(
        settings.tokens_are(DROP) & (settings.etp == 1), of / settings.tp, of))  # fmt: skip
    return np.asarray(model.top_k * per_rank * shared * factor)


def _states(work: Workload, settings: Settings, owned: OwnedParameters) -> tuple[Floats, Floats, Floats]:
    sharers = (settings.dp * settings.cp).astype(float)[:, None]
    every, others = sharers * settings.tp[:, None], settings.edp.astype(float)[:, None]
    zero = settings.zero[:, None]
    over = [np.where(zero >= 1, one, 1.0) for one in (sharers, every, others)]
    all_over = [np.where(zero >= 3, one, 1.0) for one in (sharers, every, others)]

    def spread(nbytes: float, by: list[Floats]) -> Floats:
        return nbytes * (owned.cut / by[0] + owned.whole / by[1] + owned.experts / by[2])

    weights = spread(work.weight_bytes, all_over)
    return weights, spread(work.grad_bytes, all_over), spread(work.optimizer_bytes, over)


def _activations(
    model: ModelShape, work: Workload, settings: Settings, stages: StageLayers, skew: float | Floats
) -> tuple[Floats, Floats]:
    """Return bytes that wait for the backward pass, and bytes that the pass works on, [n, 3]."""
    of, w = tokens(model, settings), work.itemsize
    mine, split = held(settings, of), settings.tp.astype(float)
    mine_rows = rows(model, settings, of, skew)
    selective = settings.recompute_is("selective")
    norm = np.where(selective, 1.0, 2.0) * model.width * mine * w  # input and output
    if model.kv_lora:
        low = (2 * model.q_lora + 2 * model.kv_lora + model.rope_dim) * mine * w
        up = 2 * model.heads * model.query_dim + model.heads * (model.head_dim + 2 * model.out_dim)
        products = low + np.where(selective, 0.0, up / split * of * w)
        products = products + model.heads * model.out_dim / split * of * w
    else:
        heads = (model.heads + 2 * model.kv_heads) * model.head_dim + model.heads * model.out_dim
        products = heads / split * of * w
    attention = norm + products
    outs = np.where(selective, model.matrices - 1.0, float(model.matrices))  # of the first matrices, and activated
    ffn = norm + outs * model.hidden / split * of * w
    expert_hidden = model.expert_hidden / settings.etp
    router = model.experts * 2 * _SCORE_BYTES * mine
    shared = outs * model.shared_hidden / split * of * w
    inside = mine_rows * (model.width + outs * expert_hidden) * w
    moe = norm + router + shared + inside
    exchanged = 2 * mine_rows * model.width * w
    whole = settings.recompute_is("redo", "stash")
    entrance = model.width * mine * work.residual_bytes
    dense_layer = np.where(whole, entrance, attention + ffn)
    moe_layer = np.where(whole, entrance + np.where(settings.recompute_is("stash"), exchanged, 0.0), attention + moe)
    count = micro_batches(work, settings)
    interleaved = np.where(settings.vpp > 1, 1 + (settings.pp - 1) / (settings.pp * settings.vpp), 1.0)
    flying = np.minimum(stages.from_end * interleaved[:, None], count[:, None])
    flying = flying + settings.schedule_is("overlap_1f1b")[:, None]
    kept = flying * (stages.dense * dense_layer[:, None] + stages.moe * moe_layer[:, None])
    # What a layer's backward pass holds beside what was kept: its gradients, weights cast to the type of products, and
    # all of it again where it is redone.
    of_rows = mine_rows * model.matrices * expert_hidden * w
    of_ffn = of * model.matrices * model.hidden / split * w
    cast = work.itemsize if work.itemsize < work.weight_bytes else 0
    local = model.experts / (settings.ep * settings.etp) * model.expert_parameters
    moe_work = exchanged + of_rows + local * cast + np.where(whole, attention + moe, 0.0)
    dense_work = of_ffn + model.ffn_parameters / split * cast + np.where(whole, attention + ffn, 0.0)
    gathered = np.where(settings.zero >= 3, 2 * work.weight_bytes, 0.0)
    moe_work = moe_work + gathered * (local + model.attention_parameters / split)
    dense_work = dense_work + gathered * (model.ffn_parameters + model.attention_parameters) / split
    layer = np.maximum(
        np.where(stages.moe > 0, moe_work[:, None], 0.0), np.where(stages.dense > 0, dense_work[:, None], 0.0)
    )
    loss = stages.head * (of * model.vocabulary * (w + _SCORE_BYTES) / split)[:, None]
    return kept, np.maximum(layer, loss)
