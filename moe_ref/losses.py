"""What keeps a gate from sending everything to one expert. All are means over real tokens, 0 where there are none.

Each loss has the dtype of the scores or logits that it is given, and so have its gradients. Choices are counted in
integers and tokens summed in fp32, or in fp64 where that is given: a count in bf16 stays at 256, in fp16 at 2048.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_ref.routing import count


def gshard(scores_TE: Tensor, experts_TK: Tensor, real_T: Tensor | None = None, *, choices: int = 1) -> Tensor:
    """Compute E sum_e m_e c_e, with m_e the mean score of expert e, and c_e the share of choices on it before dropping.

    1 where all is even. scores_TE: softmax of the logits, with gradient; experts_TK: the choices, of which the first
    `choices` count: 1 in GShard (arXiv 2006.16668, algorithm 1), fairseq, Tutel and DeepSpeed's top-1 and top-2; all K
    in DeepSpeed's top-k. real_T: false for padding; fairseq lets padding into m_e and the means' divisor, here it is
    as if it were not there.
    """
    real_T = _real(scores_TE, real_T)
    counted_TK = experts_TK[:, :choices]
    chosen_E = count(counted_TK, real_T[:, None].expand_as(counted_TK), scores_TE.shape[1])
    loss = balance(_sum(scores_TE, real_T), chosen_E, _many(real_T), max(1, counted_TK.shape[1]))
    return loss.to(scores_TE.dtype)


def balance(sums_E: Tensor, chosen_E: Tensor, many: Tensor | int, choices: int) -> Tensor:
    """Compute `gshard` from scores summed over real tokens and from how many of them chose each expert.

    many: real tokens, 1 at the least. choices: of each token, that were counted.
    """
    return len(sums_E) * (sums_E / many * chosen_E / (many * choices)).sum()


def importance_load(
    logits_TE: Tensor, noisy_TE: Tensor, top_k: int, noise: float, real_T: Tensor | None = None
) -> Tensor:
    """Compute (CV^2 of importance + CV^2 of load) / 2 (Shazeer, arXiv 1701.06538, 4; V-MoE, arXiv 2106.05974, A.2).

    Importance of an expert: the sum of its scores without noise. Load: the expected number of tokens that would choose
    it again with fresh noise of standard deviation `noise`, sum_t P(logit + noise >= K-th noisy logit of t). CV^2 is
    the variance over E divided by the squared mean. logits_TE without, noisy_TE with noise.

    Tutel differs in two ways: it compares the score, not the logit, with that threshold, and divides the variance by
    E - 1.
    """
    real_T = _real(logits_TE, real_T)
    wide_TE = logits_TE.to(_wide(logits_TE))
    importance_E = _sum(wide_TE.softmax(1), real_T)
    threshold_T1 = noisy_TE.topk(top_k, dim=1).values[:, -1:].to(wide_TE.dtype)
    load_E = _sum(torch.special.ndtr((wide_TE - threshold_T1) / noise), real_T)
    return ((_squared_variation(importance_E) + _squared_variation(load_E)) / 2).to(logits_TE.dtype)


def z(logits_TE: Tensor, real_T: Tensor | None = None) -> Tensor:
    """Compute the mean over tokens of logsumexp(logits)^2: it keeps logits small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    real_T = _real(logits_TE, real_T)
    squares_T = logits_TE.to(_wide(logits_TE)).logsumexp(1) ** 2
    return (torch.where(real_T, squares_T, 0).sum() / _many(real_T)).to(logits_TE.dtype)


def _squared_variation(values_E: Tensor) -> Tensor:
    mean = values_E.mean()
    tiny = torch.finfo(values_E.dtype).tiny ** 0.5  # no tokens: 0 / tiny^2, not 0 / 0
    return values_E.var(correction=0) / mean.clamp(min=tiny) ** 2


def _real(rows_TE: Tensor, real_T: Tensor | None) -> Tensor:
    return torch.ones(len(rows_TE), dtype=torch.bool, device=rows_TE.device) if real_T is None else real_T


def _many(real_T: Tensor) -> Tensor:
    return real_T.sum().clamp(min=1)


def _sum(rows_TE: Tensor, real_T: Tensor) -> Tensor:
    """Return the sum of the real rows: [E], wide."""
    return torch.where(real_T[:, None], rows_TE, 0).sum(0, dtype=_wide(rows_TE))


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
