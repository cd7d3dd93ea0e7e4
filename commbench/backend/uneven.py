"""Uneven exchanges by the profile: ranks tell each other their counts first, where that pays."""

from __future__ import annotations

import torch

from commbench.communicators.communicator import Communicator
from commbench.communicators.select import Ask, size_of
from commbench.profile import Profile
from commbench.transports.host_clock import elapsed_us

_COUNT_BYTES = 8
_TRIALS = 5
_STREAK = 16  # exchanges of counts in a row that led to torch's own call
_PAUSE = 256  # calls that go without one then


class Uneven:
    """Decides, the same on all ranks, which exchanges are worth an exchange of counts, and makes them.

    The counts are exchanged at every call: no rank can know that those of the others are what they were. What an
    algorithm prepares for them is kept.
    """

    def __init__(self, comm: Communicator, profile: Profile) -> None:
        """Measure what an exchange of counts costs. Collective, if the profile has a choice for any counts at all."""
        self._comm = comm
        self._streak = self._pause = 0
        self.calls = self.exchanges = 0
        choices = [choice for choice in profile.choices if choice.collective == "all_to_allv"]
        savings = [
            item.default_us - item.chosen_us
            for choice in choices
            if choice.algorithm != "direct"
            for item in choice.evidence
        ]
        self.saves_us, self.costs_us = max(savings, default=0.0), 0.0
        self.not_worth, self.counts_by = "", "direct"
        if not any(choice.algorithm != "direct" for choice in choices):
            self.not_worth = "the profile has torch's own call for all sizes"
            return
        self._rows = ((comm.size * _COUNT_BYTES,) * comm.size,) * comm.size  # each rank gets all counts of each
        ask = Ask("all_to_allv", "uint8", size_of(self._rows), matrix=self._rows)
        self.counts_by = comm.choose(ask).config.algorithm
        times = [elapsed_us(lambda: self._exchange_counts([0] * comm.size)) for _ in range(_TRIALS)]
        mine = int(sorted(times)[_TRIALS // 2])
        self.costs_us = float(max(max(row) for row in comm.exchange_counts([mine] * comm.size)))
        if self.saves_us <= self.costs_us:
            self.not_worth = (
                f"to exchange the counts takes {self.costs_us:.0f} us, and at most {self.saves_us:.0f} us are saved"
            )

    def run(self, out: torch.Tensor, inp: torch.Tensor, received: list[int], sent: list[int]) -> None:
        """Exchange `sent[i]` bytes to rank i, `received[i]` from it. Collective, and in the same order on all ranks."""
        flat = out.reshape(-1).view(torch.uint8), inp.reshape(-1).view(torch.uint8)
        self.calls += 1
        if self._pause:
            self._pause -= 1
            self._comm.all_to_allv(*flat, received, sent)
            return
        matrix = self._exchange_counts(sent)
        self.exchanges += 1
        known = tuple(map(tuple, matrix))
        chosen = self._comm.choose(Ask("all_to_allv", "uint8", size_of(known), matrix=known))
        self._streak = self._streak + 1 if chosen.config.algorithm == "direct" else 0
        if self._streak >= _STREAK:
            self._streak, self._pause = 0, _PAUSE
        self._comm.all_to_allv(*flat, received, sent, matrix=matrix)

    def _exchange_counts(self, sent: list[int]) -> list[list[int]]:
        """Return what each rank sends to each: as the profile exchanges so few bytes, if it has a choice for that."""
        if self.counts_by == "direct":
            return self._comm.exchange_counts(sent)
        size = self._comm.size
        mine = torch.tensor(sent * size, dtype=torch.int64)
        found = torch.empty_like(mine)
        row = list(self._rows[0])
        self._comm.all_to_allv(found.view(torch.uint8), mine.view(torch.uint8), row, row, matrix=self._rows)
        return [[int(count) for count in counts] for counts in found.view(size, size).tolist()]

    def explain(self) -> str:
        if self.not_worth:
            return f"torch's own, as {self.not_worth}"
        return (
            f"{self.exchanges} of {self.calls} calls exchanged their counts first, which takes {self.costs_us:.0f} us "
            f"by {self.counts_by} and saves up to {self.saves_us:.0f} us"
        )
