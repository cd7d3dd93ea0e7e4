"""The candidates of one scope that were not taken, with a reason each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from commbench.profile import Refused
from commbench.records import Case, Setup
from commbench.tune.choices import Decision
from commbench.tune.search import Ledger
from commbench.tune.space import candidate_key, identity, label


class Refusals:
    """Refused candidates by collective, label and kind of reason; the first reason of a kind is kept, and all sizes."""

    def __init__(self, default: Setup) -> None:
        """Refuse nothing yet. `default`: the set-up whose settings labels leave out."""
        self._default = default
        self._refused: dict[tuple[str, str, str], tuple[str, list[int]]] = {}

    def add(self, case: Case, why: str, reason: str) -> None:
        """Refuse `case`: `why` is the kind of reason as the profile has it, `reason` says it in words."""
        key = case.collective, label(case, self._default), why
        _, sizes = self._refused.setdefault(key, (reason, []))
        if case.size_bytes not in sizes:
            sizes.append(case.size_bytes)

    def add_rest(self, decisions: Sequence[Decision], ledger: Ledger) -> None:
        """Refuse every candidate that is neither chosen nor refused yet."""
        pruned = {(collective, name) for collective, name, why in self._refused if why == "pruned"}
        for decision in decisions:
            problem = decision.problem
            kept = {identity(decision.chosen), identity(problem.default)}
            best = ledger.time_us(decision.chosen)
            for case in problem.candidates:
                if identity(case) in kept or (decision.on_plain and identity(case) == identity(decision.on_plain)):
                    continue
                failure = ledger.failed.get(identity(case)) or ledger.banned.get(candidate_key(case))
                if failure is not None:
                    self.add(case, str(failure[0]), failure[1])
                elif math.isfinite(ledger.time_us(case)):
                    ratio = ledger.time_us(case) / best
                    if ratio > 1:
                        self.add(case, "slower", f"{ratio:.2f} times the time of {decision.chosen.label} in the search")
                    else:
                        reason = "faster than the default in the search, and not the one that was confirmed or tried"
                        tried = case.label in decision.evidence.verdict
                        self.add(case, "not confirmed", decision.evidence.verdict if tried else reason)
                elif (case.collective, label(case, self._default)) not in pruned:
                    self.add(case, "not measured", "the search ended before it")

    def records(self, scope: str) -> list[Refused]:
        """Return what the profile lists for the scope with this id."""
        return [
            Refused(scope=scope, collective=collective, label=name, sizes=sorted(sizes), why=why, reason=reason)
            for (collective, name, why), (reason, sizes) in self._refused.items()
        ]
