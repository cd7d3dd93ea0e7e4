"""The arms of `commbench ab`: what is typed, as two ways to start a program."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commbench import variables
from commbench.ab.pairs import ARMS, CANDIDATE
from commbench.errors import UsageError, unknown
from commbench.profile import file
from commbench.serialise import digest

SECOND = ":::"  # between the programs of both arms, as GNU parallel has it: no program takes such a word
_NONE = ("default", "none")  # in place of a profile's path
_EXAMPLES = "--profile p.json, --profile a.json --profile b.json, env.NAME=a,b, candidate.env.NAME=V, or A ::: B"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramArm:
    """One way to start the program. env: what is set above our environment, `unset` takes a variable away.

    profile: the file by which exchanges go, "" none. profiled: whether the arms differ in it, so that none is said.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    profile: str = ""
    profile_digest: str = ""
    profiled: bool = False

    def environment(self) -> dict[str, str]:
        """Return the variables of the program."""
        if self.profile:
            return {**self.env, variables.BACKEND: "profile", variables.PROFILE: self.profile}
        if self.profiled:  # whatever our own environment says
            return {**self.env, variables.BACKEND: variables.UNSET, variables.PROFILE: variables.UNSET}
        return dict(self.env)

    def settings(self) -> dict[str, Any]:
        """Return what files say of the arm."""
        profile = self.profile or None
        return {"command": list(self.command), "profile": profile, "profile_digest": self.profile_digest or None,
                **{f"env.{name}": value for name, value in self.env.items()}}  # fmt: skip


def split(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the words that are of both arms, and `env.NAME=V`, `profile=FILE` of each: `candidate.env.NAME=V`."""
    common: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in ARMS}
    for word in words:
        arm, dot, inner = word.partition(".")
        if dot and arm in ARMS:
            own[arm].append(inner)
        elif word.partition("=")[0] in ARMS:  # as `commbench train ab` has it
            own[word.partition("=")[0]].append(f"profile={word.partition('=')[2]}")
        else:
            common.append(word)
    return common, own


def arms_of(
    program: Sequence[str] | None,
    profiles: Sequence[str],
    env: Mapping[str, Sequence[str]],
    own: Mapping[str, Sequence[str]],
) -> dict[str, ProgramArm]:
    """Return both arms. Raises `UsageError` where what is typed makes another number of them.

    program: what stands after `--`, None where that was not typed. profiles: of `--profile`; one alone is the
    candidate's. env: the values of each `env.NAME`: one for both arms, or one for each. own: as `split` returns them.
    """
    commands = _commands(program)
    paths = _profiles(profiles)
    settings: dict[str, dict[str, str]] = {name: {} for name in ARMS}
    for name, values in env.items():
        if len(values) > len(ARMS):
            raise UsageError(f"env.{name} has {len(values)} values, and there are {len(ARMS)} arms",
                             hint="compare two at a time")  # fmt: skip
        for number, arm in enumerate(ARMS):
            settings[arm][name] = values[min(number, len(values) - 1)]
    for arm in ARMS:
        for word in own[arm]:
            _of_one(arm, word, settings[arm], paths)
    ways = [len(commands) > 1, bool(paths), any(len(values) > 1 for values in env.values()), any(own.values())]
    if sum(ways[:3]) > 1 or (ways[3] and any((ways[0], ways[2]))):
        raise UsageError("the arms differ in several ways, so nobody could say which of them it was",
                         hint=f"one of these: {_EXAMPLES}; together: candidate.env.A=V candidate.env.B=V")  # fmt: skip
    if not any(ways):
        raise UsageError("there is one arm: nothing says in what the second differs", hint=_EXAMPLES)
    loaded = {arm: _loaded(paths.get(arm, "")) for arm in ARMS}
    return {
        arm: ProgramArm(
            name=arm, command=commands[min(number, len(commands) - 1)], env=settings[arm], profile=loaded[arm][0],
            profile_digest=loaded[arm][1], profiled=bool(paths),
        )
        for number, arm in enumerate(ARMS)
    }  # fmt: skip


def _commands(program: Sequence[str] | None) -> list[tuple[str, ...]]:
    if program is None:
        raise UsageError("there is no -- before the program", hint="commbench ab .. -- torchrun train.py")
    commands: list[tuple[str, ...]] = [()]
    for word in program:
        if word == SECOND:
            commands.append(())
        else:
            commands[-1] += (word,)
    if len(commands) > len(ARMS):
        raise UsageError(f"{len(commands)} programs, and there are {len(ARMS)} arms", hint="compare two at a time")
    if len(commands) > 1 and not all(commands):
        raise UsageError(f"there is no program on one side of {SECOND}", hint=f"-- PROGRAM A {SECOND} PROGRAM B")
    return commands


def _profiles(typed: Sequence[str]) -> dict[str, str]:
    """Return the path of each arm that has one; "" is none."""
    if len(typed) > len(ARMS):
        raise UsageError(f"{len(typed)} profiles, and there are {len(ARMS)} arms", hint="compare two at a time")
    if len(typed) == 1:
        return {CANDIDATE: typed[0]}
    return {arm: "" if path in _NONE else path for arm, path in zip(ARMS, typed, strict=False)}


def _of_one(arm: str, word: str, settings: dict[str, str], paths: dict[str, str]) -> None:
    """Take in what is typed for one arm."""
    key, _, value = word.partition("=")
    name = key.removeprefix("env.")
    if key != name:
        if not name.isidentifier() or "=" not in word:
            raise UsageError(f"cannot read {arm}.{word}", hint=f"{arm}.env.NAME=VALUE")
        settings[name] = value
    elif key == "profile":
        if not value:
            raise UsageError(f"{arm} has no profile", hint=f"{arm}.profile=FILE, or {arm}.profile=none")
        paths[arm] = "" if value in _NONE else value
    else:
        raise unknown(f"setting of {arm}", key, ["env.NAME", "profile"])


def _loaded(path: str) -> tuple[str, str]:
    """Return path and digest of a profile that can be read."""
    if not path:
        return "", ""
    return str(Path(path).absolute()), digest(file.dump(file.load(Path(path))))


def names(both: Mapping[str, ProgramArm]) -> dict[str, str]:
    """Return what each arm is, in words: that in which it differs from the other one."""
    one, two = (both[name] for name in ARMS)
    words: dict[str, list[str]] = {name: [] for name in ARMS}
    if one.command != two.command:
        for arm in (one, two):
            words[arm.name].append(shlex.join(arm.command))
    if one.profile != two.profile:
        short = {arm.name: Path(arm.profile).name or "no profile" for arm in (one, two)}
        for arm in (one, two):
            words[arm.name].append(short[arm.name] if len({*short.values()}) > 1 else arm.profile)
    for name in dict.fromkeys([*one.env, *two.env]):
        if one.env.get(name) != two.env.get(name):
            for arm in (one, two):
                words[arm.name].append(f"{name}={arm.env[name]}" if name in arm.env else f"{name} as it is")
    return {name: ", ".join(words[name]) or "the same" for name in ARMS}


def differences(both: Mapping[str, ProgramArm]) -> str:
    """Return in what the arms differ, the baseline's first."""
    named = names(both)
    same = len({*named.values()}) == 1
    return "both arms are the same" if same else " against ".join(named[name] for name in ARMS)
