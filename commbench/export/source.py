"""What exporters are given, what they give back, and comments that no value of a profile can end."""

from __future__ import annotations

import functools
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from commbench.algorithms import outside
from commbench.profile import Profile, Scope
from commbench.profile.scope import only
from commbench.variables import UNSET, refuse_code

# NCCL's tuner reads lines of 255 bytes; what is longer becomes a second line, which would not be a comment.
_WIDTH = 120


@dataclass(frozen=True)
class ExportSource:
    """A profile that is to be exported, and where it is."""

    profile: Profile
    path: Path
    wanted: str = ""  # id of a scope; "": the only one
    python: str = sys.executable  # of ranks, which is this one where nodes share their files
    allowed: tuple[str, ...] = ()  # variables that load code, and may

    @functools.cached_property
    def scope(self) -> Scope:
        """Return the scope. Raises `OutOfScope` where it is not clear which one is meant."""
        return only(self.profile, self.wanted, str(self.path))

    def refuse_code(self) -> None:
        """Raise `UsageError` where the scopes that are exported set variables that load code."""
        for scope in [self.scope] if self.wanted or len(self.profile.scopes) == 1 else self.profile.scopes:
            refuse_code(scope.env, f"the profile {self.path}", self.allowed)

    def files(self) -> list[str]:
        """Return the files of algorithms from outside, which the user had to name to read the profile."""
        return [one.word for one in outside.loaded({one.key for one in self.profile.outside}) if not one.entry_point]

    def heading(self, what: str) -> list[str]:
        """Return the comments that begin a file: what it is, and of which profile."""
        return [
            *comment(what),
            *comment(f"Written by {self._writer} from {self.path}, scope {self.scope.id}:"),
            *comment(f"  {self.scope}"),
        ]

    @property
    def _writer(self) -> str:
        return f"commbench {self.profile.commbench_version}".strip()


@dataclass(frozen=True, slots=True)
class Exported:
    text: str
    notes: list[str] = field(default_factory=list)  # what the format could not say, for stderr


def lines(*parts: list[str]) -> str:
    return "".join(f"{line}\n" for part in parts for line in part)


def comment(text: str) -> list[str]:
    """Return lines that begin with #, in ASCII, whatever is in `text`."""
    plain = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text)
    indent = " " * (len(plain) - len(plain.lstrip(" ")))
    wrapped = textwrap.wrap(
        plain, _WIDTH, initial_indent="# ", subsequent_indent=f"# {indent}  ", break_on_hyphens=False
    )
    return wrapped or ["#"]


def unbound(scope: Scope) -> list[str]:
    """Return a note where the scope has a binding, for formats that hold none."""
    if scope.binding == "none":
        return []
    return [
        f"binding={scope.binding} is not in it: start ranks with commbench exec, "
        "or see --format mpiexec, srun and torchrun"
    ]


def without(scope: Scope) -> list[str]:
    """Return the variables that must not be set."""
    return [name for name, value in scope.env.items() if value == UNSET]


def settings(scope: Scope) -> dict[str, str]:
    """Return the variables that must be set."""
    return {name: value for name, value in scope.env.items() if value != UNSET}
