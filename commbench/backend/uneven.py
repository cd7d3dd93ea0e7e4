"""Uneven exchanges by the profile, of which each rank knows its own counts only.

All ranks have to make the same choice, and it depends on the size of the call, which none of them knows. Algorithms
whose messages carry the counts tell all ranks the size of each call that they make, so the choice is that for the
largest of the last ones. Others need an exchange of counts before each call, and are taken where that pays.
"""

from __future__ import annotations

from collections import Counter, deque

import torch

from commbench import algorithms
from commbench.algorithms.base import CountsInside
from commbench.communicators.communicator import Communicator
from commbench.communicators.select import Ask, Chosen, size_of
from commbench.profile import Profile
from commbench.transports.host_clock import elapsed_us

_COUNT_BYTES = 8
_TRIALS = 5
_REMEMBERED = 16  # calls, the largest of which says which choice the next one gets
_STREAK = 16  # calls in a row for which ranks have found out that torch's own is the choice
_PAUSE = 256  # calls that are torch's own then, without finding out


class Uneven:
    """Decides, the same on all ranks, which exchanges go by the profile, and makes them."""

    def __init__(self, comm: Communicator, profile: Profile) -> None:
        """Find out what can pay. Collective, if a choice of the profile needs an exchange of counts."""
        self._comm = comm
        self._sizes: deque[int] = deque(maxlen=_REMEMBERED)
        self._inside: dict[str, CountsInside | None] = {}  # by the choice
        self._streak = self._pause = self.calls = self.exchanges = 0
        self.carried = Counter[str]()  # calls whose messages carried the counts, by the choice
        self.not_worth, self.counts_by = "", "direct"
        self.saves_us = self.costs_us = 0.0
        others = [c for c in profile.choices if c.collective == "all_to_allv" and c.algorithm != "direct"]
        lacking = [c for c in others if algorithms.get(c.collective, c.algorithm).counts_inside is None]
        self._lacking = bool(lacking)
        if not others:
            self.not_worth = "the profile has torch's own call for all sizes"
        if not lacking:
            return
        self.saves_us = max((one.default_us - one.chosen_us for c in lacking for one in c.evidence), default=0.0)
        self._rows = ((comm.size * _COUNT_BYTES,) * comm.size,) * comm.size  # each rank gets all counts of each
        self.counts_by = comm.choose(
            Ask("all_to_allv", "uint8", size_of(self._rows), matrix=self._rows)
        ).config.algorithm
        times = [elapsed_us(lambda: self._exchange_counts([0] * comm.size)) for _ in range(_TRIALS)]
        self.costs_us = float(self._most(int(sorted(times)[_TRIALS // 2])))
        if len(lacking) == len(others) and not self._exchange_pays:
            self.not_worth = self._why_not()

    def run(self, out: torch.Tensor, inp: torch.Tensor, received: list[int], sent: list[int]) -> None:
        """Exchange `sent[i]` bytes to rank i, `received[i]` from it. Collective, and in the same order on all ranks."""
        flat = out.reshape(-1).view(torch.uint8), inp.reshape(-1).view(torch.uint8)
        self.calls += 1
        if self._pause:
            self._pause -= 1
            self._comm.all_to_allv(*flat, received, sent)
            return
        if not self._sizes:
            self._sizes.append(self._most(max(sum(sent), sum(received))))
        chosen = self._comm.choose(Ask("all_to_allv", "uint8", max(self._sizes)), counts=False)
        if (inside := self._counts_inside(chosen)) is not None:
            self._streak = 0
            self.carried[chosen.config.label] += 1
            self._sizes.append(inside.run(*flat, received, sent))
        elif chosen.config.algorithm == "direct" or not self._exchange_pays:
            self._is_library()
            self._comm.all_to_allv(*flat, received, sent)
        else:
            self._exchange_first(flat, received, sent)

    def _exchange_first(self, flat: tuple[torch.Tensor, torch.Tensor], received: list[int], sent: list[int]) -> None:
        """Make a call by the choice for what all ranks send to each other."""
        self.exchanges += 1
        matrix = self._exchange_counts(sent)
        known = tuple(map(tuple, matrix))
        size = size_of(known)
        self._sizes.append(size)
        if self._comm.choose(Ask("all_to_allv", "uint8", size, matrix=known)).config.algorithm == "direct":
            self._is_library()
        else:
            self._streak = 0
        self._comm.all_to_allv(*flat, received, sent, matrix=matrix)

    def _is_library(self) -> None:
        """Take note that ranks have found out that a call is torch's own."""
        self._sizes.clear()
        self._streak += 1
        if self._streak >= _STREAK:
            self._streak, self._pause = 0, _PAUSE

    def _counts_inside(self, chosen: Chosen) -> CountsInside | None:
        label = chosen.config.label
        if label not in self._inside:
            self._inside[label] = self._comm.counts_inside(chosen)
        return self._inside[label]

    def _most(self, mine: int) -> int:
        """Return the largest of what the ranks have. Collective."""
        return max(max(row) for row in self._comm.exchange_counts([mine] * self._comm.size))

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

    @property
    def _exchange_pays(self) -> bool:
        return self.saves_us > self.costs_us

    def _why_not(self) -> str:
        return f"to exchange the counts takes {self.costs_us:.0f} us, and at most {self.saves_us:.0f} us are saved"

    def explain(self) -> str:
        """Return in words what has gone by the profile, and why what does not."""
        if self.not_worth:
            return f"torch's own, as {self.not_worth}"
        told = []
        if self.carried:
            by = ", ".join(f"{label} ({count})" for label, count in self.carried.items())
            told.append(f"{self.carried.total()} of {self.calls} calls by {by}, whose first messages carry the counts")
        if self.exchanges:
            told.append(
                f"{self.exchanges} of {self.calls} calls exchanged their counts first, which takes {self.costs_us:.0f} "
                f"us by {self.counts_by} and saves up to {self.saves_us:.0f} us"
            )
        elif self._lacking and not self._exchange_pays:
            told.append(f"torch's own where the counts would have to be exchanged first, as {self._why_not()}")
        return "; ".join(told) or f"all of {self.calls} calls are torch's own, which is the choice for their sizes"
