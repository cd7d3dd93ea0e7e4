"""Parts of a recipe: set-ups of its own that it measures beside each other.

`parts` is a list of keys, each over all other keys of the recipe. A part is of the recipe, not of the user: what is
typed comes first. Values of its axes that are not among those typed are not measured, and where all that is typed
cannot be had from parts, or a layout or a fabric is typed, the recipe is what it is without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from commbench.errors import UsageError
from commbench.sweep.key import values_of
from commbench.sweep.keys import FABRIC, KEYS, RANKS, WHAT
from commbench.sweep.recipes import Overrides

_LAYOUT = frozenset({"layout", "nodes", "ranks_per_node"})


@dataclass(frozen=True, slots=True)
class Part:
    """The keys of one part, as a recipe would hold them, and what of the typed ones is left to be put on top."""

    keys: dict[str, Any]
    overrides: Overrides
    alone: bool  # whether it is the whole recipe


def of_recipe(composed: Mapping[str, Any], overrides: Overrides, *, wanted: bool) -> list[Part]:
    """Return the parts to be measured, or the recipe alone. Raises `UsageError` for what are no parts."""
    body = {key: value for key, value in composed.items() if key != "parts"}
    alone = [Part(body, overrides, alone=True)]
    listed = composed.get("parts") or []
    if not isinstance(listed, list) or not all(isinstance(part, Mapping) for part in listed):
        raise UsageError(
            f"parts is {listed!r}", hint="a list of keys, each as a recipe has them; see recipe/quick.yaml"
        )
    if not wanted or not listed or _elsewhere(listed, overrides.values):
        return alone
    parts = [_narrowed(body, part, overrides) for part in listed]
    kept = [part for part in parts if part is not None]
    return kept if _covered(listed, overrides.values) else alone


def _elsewhere(listed: Sequence[Mapping[str, Any]], typed: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether the user says which ranks or links to measure, and some part has its own."""
    said = {name for name in typed if name in KEYS and KEYS[name].group in (RANKS, FABRIC)}
    said |= _LAYOUT if _LAYOUT & said else set()
    return any(said & set(part) for part in listed)


def _deciding(part: Mapping[str, Any], typed: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return the keys of which both name values that are measured beside each other."""
    return [name for name in part if name in typed and name in KEYS and KEYS[name].axis and KEYS[name].group == WHAT]


def _narrowed(body: Mapping[str, Any], part: Mapping[str, Any], overrides: Overrides) -> Part | None:
    """Return the part with those of its values that are typed, where any are; None where there are none."""
    keys = {**body}
    for name, value in part.items():
        both = isinstance(value, Mapping) and isinstance(keys.get(name), Mapping)
        keys[name] = {**keys[name], **value} if both else value
    left = dict(overrides.values)
    for name in _deciding(part, overrides.values):
        left[name] = [value for value in values_of(name, part[name]) if {value, "all"} & {*left[name]}]
        if not left[name]:
            return None
    return Part(keys, replace(overrides, values=left), alone=False)


def _covered(listed: Sequence[Mapping[str, Any]], typed: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether every value that is typed is measured in some part."""
    for name in {name for part in listed for name in _deciding(part, typed)}:
        known = [part for part in listed if name in part]
        if len(known) < len(listed):  # others take all that is typed
            continue
        if not {*typed[name]} <= {value for part in known for value in values_of(name, part[name])}:
            return False
    return True
