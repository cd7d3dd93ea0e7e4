"""Which scope of a profile a program is in, and what differs where it is in none."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from commbench.binding.policies import BY_NODE
from commbench.errors import CommbenchError
from commbench.profile import Profile, Scope
from commbench.records import NOMINAL
from commbench.variables import BINDING, FABRIC, UNSET


class OutOfScope(CommbenchError):
    """A profile that was made elsewhere: no scope of it fits what is here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The set-up that a program runs in; scopes are compared with it."""

    transport: str
    nodes: int
    ranks_per_node: int
    versions: dict[str, str] = field(default_factory=dict)
    gpu: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    between: str = ""  # the nodes, as in rows

    @property
    def fabric(self) -> str:
        return self.environ.get(FABRIC, "") or (self.between if self.between in NOMINAL else "")

    @property
    def binding(self) -> str:
        return self.environ.get(BINDING, "none")


def differences(scope: Scope, here: Here) -> list[str]:
    """Return what `scope` asks for and is not so here, in words; none: it fits."""
    facts = [
        *((f"{name} version", version, here.versions.get(name, "none")) for name, version in scope.versions.items()),
        ("GPU", scope.gpu or here.gpu or "none", here.gpu or "none"),
        ("binding", scope.binding, here.binding),
        *((name, value, here.environ.get(name, UNSET)) for name, value in scope.env.items()),
    ]
    return [*elsewhere(scope, here), *_differing(facts)]


def elsewhere(scope: Scope, here: Here) -> list[str]:
    """Return the part of `differences` that is known before any rank has been started."""
    # What was tuned on real machines is no worse where nodes are not machines of their own; the reverse is a guess.
    fabric = "" if here.fabric in NOMINAL and not scope.fabric else here.fabric
    return _differing(
        [
            ("transport", scope.transport, here.transport),
            ("nodes", scope.nodes, here.nodes),
            ("ranks per node", scope.ranks_per_node, here.ranks_per_node),
            ("fabric", _fabric_text(scope.fabric), _fabric_text(fabric)),
        ]
    )


def _fabric_text(fabric: str) -> str:
    return NOMINAL.get(fabric, fabric) or "a real one"


def _differing(facts: Sequence[tuple[str, object, object]]) -> list[str]:
    return [
        f"{name}: the profile is for {wanted}, here is {have}"
        for name, wanted, have in facts
        if wanted is not None and wanted != have
    ]


def specificity(scope: Scope) -> int:
    """Return how much a scope asks for: of those that fit, the one that asks for most is taken."""
    asked = (scope.nodes, scope.ranks_per_node, scope.gpu, scope.fabric, scope.binding != "none")
    return sum(map(bool, asked)) + len(scope.versions) + len(scope.env)


def matching(
    profile: Profile,
    here: Here,
    *,
    allow_mismatch: bool = False,
    name: str = "the profile",
    of_program: bool = True,
) -> Scope:
    """Return the most specific scope that fits; with `allow_mismatch` else the one with the fewest differences.

    Another transport, or another layout than the choices were made for, is never allowed to match silently: the
    caller asked for it. Raises `OutOfScope` with the differences listed.

    `of_program`: the caller makes communicators itself, so the hint says what else it may do.
    """
    fitting = [scope for scope in profile.scopes if not differences(scope, here)]
    if fitting:
        return max(fitting, key=specificity)
    nearest = min(profile.scopes, key=lambda scope: len(differences(scope, here)), default=None)
    if nearest is None:
        raise OutOfScope(f"{name} has no scope", hint="tune again: commbench tune --out FILE")
    if allow_mismatch and nearest.transport == here.transport:
        return nearest
    raise _refusal(name, differences(nearest, here), here, _remedies(nearest, here) if of_program else "")


def check_setup(profile: Profile, here: Here, name: str) -> None:
    """Raise `OutOfScope` where every scope is for another layout, transport or fabric, before ranks are started."""
    if profile.scopes and all(elsewhere(scope, here) for scope in profile.scopes):
        differing = min((elsewhere(scope, here) for scope in profile.scopes), key=len)
        raise _refusal(name, differing, here, f", or {_INSIST}")


_INSIST = "insist with allow_mismatch=True"


def _refusal(name: str, differing: Sequence[str], here: Here, remedies: str) -> OutOfScope:
    return OutOfScope(
        f"{name} was not made for this set-up: {'; '.join(differing)}", hint=f"tune here: {_tuning(here)}{remedies}"
    )


def _tuning(here: Here) -> str:
    """Return the command that makes a profile for this set-up."""
    keys = {"transport": here.transport, "nodes": here.nodes, "ranks_per_node": here.ranks_per_node}
    fabric = "emulated" if here.environ.get(FABRIC) else here.between
    keys |= {"fabric": fabric} if fabric in ("emulated", "virtual") else {}
    keys |= {"binding": here.binding} if here.binding in BY_NODE else {}
    return shlex.join(
        ["commbench", "tune", "quick", *(f"{key}={value}" for key, value in keys.items()), "--out", "here.json"]
    )


def _remedies(scope: Scope, here: Here) -> str:
    launch = any(here.environ.get(name, UNSET) != value for name, value in scope.env.items())
    start = ", or start with `commbench exec --profile FILE -- ...`" if launch or scope.binding != here.binding else ""
    return f"{start}, or {_INSIST}"


def only(profile: Profile, wanted: str, name: str) -> Scope:
    """Return the scope with the id `wanted`, or the only one. Raises `OutOfScope` where that is not clear."""
    if wanted:
        for scope in profile.scopes:
            if scope.id == wanted:
                return scope
        raise OutOfScope(f"{name} has no scope {wanted!r}", hint=f"its scopes: {_listed(profile.scopes)}")
    if len(profile.scopes) != 1:
        raise OutOfScope(
            f"{name} has {len(profile.scopes)} scopes, and which is meant is not clear",
            hint=f"choose one with --scope: {_listed(profile.scopes)}",
        )
    return profile.scopes[0]


def _listed(scopes: Sequence[Scope]) -> str:
    return "; ".join(f"{scope.id} ({scope})" for scope in scopes)
