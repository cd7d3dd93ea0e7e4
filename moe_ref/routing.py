"""What a gate decided: who goes where, with which weight, and where that is in the buffer that is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref import selection


@dataclass(frozen=True, slots=True)
class Routing:
    """The choices of one rank's tokens.

    experts_TK: int64, the expert of each choice, best first.
    slots_TK: int64, its slot; -1 where the choice has none (padding, dropped, or a second expert not taken).
    weights_TK: what its expert's output counts for, in the gate's dtype, with gradient; 0 where there is no slot.
    counts_E: int64, slots taken of each expert. loads_E: the same before dropping.
    capacity: C; None for dropless. rows: rows of the buffer, E C, or for dropless the number of choices.
    losses: by name, 0-dimensional, with gradient.
    maps: what `rows_TK()` and `choice_R()` return, where it was made with the routing.
    logits_TE, score: what scores are made of, in the gate's dtype, with gradient and with noise, and how
        (`GateConfig.score`).

    The buffer is [E, C, D], where slot c of expert e is row e C + c and slots that nobody took are 0; for dropless it
    is [rows, D], where tokens are sorted by expert and `counts_E` says how many each has.
    """

    experts_TK: Tensor
    slots_TK: Tensor
    weights_TK: Tensor
    counts_E: Tensor
    loads_E: Tensor
    capacity: int | None
    rows: int
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    maps: tuple[Tensor, Tensor] | None = None
    logits_TE: Tensor | None = None
    score: str = "softmax"

    @property
    def tokens(self) -> int:
        """T."""
        return self.experts_TK.shape[0]

    @property
    def top_k(self) -> int:
        """K."""
        return self.experts_TK.shape[1]

    @property
    def experts(self) -> int:
        """E."""
        return self.counts_E.shape[0]

    @property
    def dropped(self) -> Tensor:
        """The number of choices that found no slot: 0-dimensional, int64, on the device."""
        return self.loads_E.sum() - self.counts_E.sum()

    def scores_TE(self) -> Tensor:
        """Return the score of each expert for each token, with gradient, before weights are normalised and scaled."""
        if self.logits_TE is None:
            raise UsageError("this routing was made without logits", hint="one that a Gate returns has them")
        return selection.scores(self.logits_TE, self.score)

    def rows_TK(self) -> Tensor:
        """Return the row of the buffer of each choice: int64 [T, K], -1 for none."""
        if self.maps is not None:
            return self.maps[0]
        if self.capacity is None:
            first_E = self.counts_E.cumsum(0) - self.counts_E
            rows_TK = first_E[self.experts_TK] + self.slots_TK
        else:
            rows_TK = self.experts_TK * self.capacity + self.slots_TK
        return torch.where(self.slots_TK < 0, -1, rows_TK)

    def choice_R(self) -> Tensor:
        """Return the choice of each row, t K + k for choice k of token t: int64 [R], -1 where nobody took it."""
        if self.maps is not None:
            return self.maps[1]
        rows_TK = self.rows_TK()
        choices = torch.arange(rows_TK.numel(), device=rows_TK.device)
        # Choices without a row all write to one behind the last, which is cut off.
        into = torch.where(rows_TK < 0, self.rows, rows_TK).flatten()
        return choices.new_full((self.rows + 1,), -1).scatter(0, into, choices)[: self.rows]

    def buffer_shape(self, width: int) -> tuple[int, ...]:
        """Return the shape of the dispatch buffer, for rows of `width` elements: (E, C, D) or (rows, D)."""
        return (self.rows, width) if self.capacity is None else (self.experts, self.capacity, width)


def count(experts_TK: Tensor, valid_TK: Tensor, experts: int) -> Tensor:
    """Count the valid choices of each expert: int64 [E]. Nothing on the host waits."""
    counts_E = torch.zeros(experts, dtype=torch.int64, device=experts_TK.device)
    return counts_E.scatter_add(0, experts_TK.flatten(), valid_TK.flatten().to(torch.int64))
