"""The choices of a scope, looked up by bisection: no file, no lock."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from commbench.profile import Choice, Profile
from commbench.spec import Value


class Curve:
    """The choices of one collective over all sizes."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = sorted(choices, key=lambda choice: choice.min_bytes)
        self._starts = [choice.min_bytes for choice in self.choices]

    def at(self, size_bytes: int) -> Choice:
        return self.choices[bisect_right(self._starts, size_bytes) - 1]

    @property
    def arguments(self) -> Mapping[str, Value]:
        return self.choices[0].arguments


class Table:
    """All choices of one scope."""

    def __init__(self, profile: Profile, scope: str) -> None:
        groups: dict[tuple[str, bool, str], list[Choice]] = {}
        for choice in profile.of_scope(scope):
            key = choice.collective, choice.captured, repr(sorted(choice.arguments.items()))
            groups.setdefault(key, []).append(choice)
        self._curves = {key: Curve(choices) for key, choices in groups.items()}

    def curve(
        self, collective: str, *, captured: bool = False, arguments: Mapping[str, Value] | None = None
    ) -> Curve | None:
        """Return the choices for these arguments, None where nothing was tuned.

        For calls in a graph they are those for graphs, or where nothing was tuned for graphs, the others.
        """
        asked = repr(sorted((arguments or {}).items()))
        for kind in (captured, False):
            if curves := self._curves.get((collective, kind, asked)):
                return curves
        return None

    def curves(self, collective: str, *, captured: bool = False) -> list[Curve]:
        """Return the choices for a collective, whatever its arguments; for calls in a graph as `curve` does."""
        for kind in (captured, False):
            if curves := [curve for key, curve in self._curves.items() if key[:2] == (collective, kind)]:
                return curves
        return []
