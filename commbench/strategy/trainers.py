"""Which trainer can run which settings: ours, Megatron-LM, torchtitan, DeepSpeed, by what their options say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from commbench.strategy.setting import SPLIT, Settings

Marks = npt.NDArray[np.bool_]
NAMES = ("commbench", "megatron", "torchtitan", "deepspeed")


def runs(settings: Settings, gpus: int) -> dict[str, Marks]:
    """Return of each trainer which settings it can run, [n]. gpus: of the cluster."""
    split, sequential = settings.tokens_are(SPLIT), settings.schedule_is("sequential")
    alone = settings.tp == 1
    choice = settings.exchange_is("per_choice")
    # Ours spreads experts over all ranks, and cuts them as it cuts attention.
    ours = (
        (settings.pp == 1) & (settings.cp == 1) & (settings.ep * settings.etp == gpus) & (settings.etp == settings.tp)
    )
    ours &= (settings.zero < 3) & settings.recompute_is("none", "redo", "stash")
    ours &= np.where(
        alone,
        settings.schedule_is("sequential", "pipelined", "expert_groups") & ~settings.exchange_is("2d_intra_first"),
        ~split & choice,
    )
    # Its flex dispatcher sends a token once to a node (DeepEP, HybridEP).
    dispatched = choice | settings.exchange_is("all_gather") | settings.exchange_is("per_node")
    megatron = split & settings.schedule_is("sequential", "overlap_1f1b") & dispatched & (settings.zero < 3)
    megatron &= ~settings.recompute_is("stash")
    # Exchanges beside compute want exchanges of their own, and layers that are not redone.
    megatron &= ~(settings.schedule_is("overlap_1f1b")
                  & (settings.exchange_is("all_gather") | settings.recompute_is("redo")))  # fmt: skip
    titan = split & sequential & (settings.etp == 1) & (choice | settings.exchange_is("per_node"))
    titan &= ((settings.zero == 3) | (settings.dp * settings.cp == 1)) & ~settings.recompute_is("stash", "selective")
    # AutoTP's ranks hold the same tokens, and AutoEP lets each send its own part of them; it folds with tp in pipelines
    # of one stage, cuts no experts, and has a DeepEP that sends a token once to a node.
    deepspeed = (
        (settings.pp == 1) & (settings.cp == 1) & (settings.etp == 1) & (choice | settings.exchange_is("per_node"))
    )
    deepspeed &= np.where(alone, sequential, settings.schedule_is("drop") & (settings.ep > 1) & (settings.zero < 3))
    deepspeed &= settings.recompute_is("none", "redo")
    return {"commbench": ours, "megatron": megatron, "torchtitan": titan, "deepspeed": deepspeed}


def run_by(settings: Settings, trainer: str, gpus: int) -> Marks:
    """Return which settings `trainer` can run, [n]. `any`: one of them at the least; `all`: whoever does."""
    if trainer == "all":
        return np.ones(len(settings), dtype=bool)
    found = runs(settings, gpus)
    return np.logical_or.reduce(list(found.values())) if trainer == "any" else found[trainer]
