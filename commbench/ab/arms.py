"""The arms of `commbench ab`: what is typed, as two ways to start a program."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from commbench import variables
from commbench.ab.pairs import ARMS, CANDIDATE
from commbench.errors import UsageError, unknown
from commbench.export import program as programs
from commbench.profile import Profile, Scope, file
from commbench.serialise import digest

SECOND = ":::"  # between the programs of both arms, as GNU parallel has it: no program takes such a word
_NONE = ("default", "none")  # in place of a profile's path
_EXAMPLES = (
    "--profile p.json, --profile a.json --profile b.json, env.NAME=a,b, binding=none,block, candidate.env.NAME=V, "
    "or A ::: B"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramArm:
    """One way to start the program. env: what is set above our environment, `unset` takes a variable away.

    profile: the file by which exchanges go, "" none. profiled: whether the arms differ in it. settings_of: variables by
    which `commbench exec` would start the program under it; without a profile those that take one away. reductions:
    whether sums go by the profile too. binding: the policy by which ranks bind themselves, "" where the arms say
    nothing of it.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    profile: str = ""
    profile_digest: str = ""
    profiled: bool = False
    reductions: bool = False
    settings_of: Mapping[str, str] = field(default_factory=dict)
    binding: str = ""

    @property
    def needs_commbench(self) -> bool:
        """Return whether the program has to load commbench, for the arms to differ at all."""
        return self.profiled or bool(self.binding)

    def bound_in(self, folder: Path) -> ProgramArm:
        """Return the arm as its ranks bind themselves: by a profile in `folder` that says nothing else."""
        if not self.binding:
            return self
        path = folder / f"binding-{self.binding}.json"
        scope = Scope(id="binding", transport="gloo", nodes=None, ranks_per_node=None, binding=self.binding)
        file.save(Profile(scopes=[scope], choices=[]), path)
        return replace(self, settings_of=programs.settings(scope, path, bound=False, reductions=False))

    def environment(self, recording: Path | None = None) -> dict[str, str]:
        """Return the variables of the program, with those that let it be recorded into a folder."""
        env = {**self.env, **self.settings_of}
        if recording is not None:
            before = env.get(variables.BACKEND, os.environ.get(variables.BACKEND, ""))
            modes = [mode for mode in before.split(",") if mode not in ("", variables.UNSET, "record")]
            env |= {variables.BACKEND: ",".join([*modes, "record"]), variables.RECORD: str(recording)}
        return env

    def settings(self) -> dict[str, Any]:
        """Return what files say of the arm."""
        profile, digest_ = self.profile or None, self.profile_digest or None
        bound = {"binding": self.binding} if self.binding else {}
        sums = {"reductions": True} if self.reductions else {}
        return {"command": list(self.command), "profile": profile, "profile_digest": digest_, **sums, **bound,
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
    allow_env: Sequence[str] = (),
    bindings: Sequence[str] = (),
    *,
    reductions: bool = False,
) -> dict[str, ProgramArm]:
    """Return both arms. Raises `UsageError` where what is typed makes another number of them.

    program: what stands after `--`, None where that was not typed. profiles: of `--profile`; one alone is the
    candidate's. env: the values of each `env.NAME`: one for both arms, or one for each. own: as `split` returns them.
    allow_env: variables of a profile that may load code. bindings: policies: none, one for both arms, or one for each.
    reductions: sums go by the profiles too.
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
    ways = [len(commands) > 1, len(bindings) > 1, any(len(values) > 1 for values in env.values()), bool(paths)]
    if sum(ways) > 1 or (any(own.values()) and any(ways[:3])):
        raise UsageError("the arms differ in several ways, so nobody could say which of them it was",
                         hint=f"one of these: {_EXAMPLES}; together: candidate.env.A=V candidate.env.B=V")  # fmt: skip
    if not any(ways) and not any(own.values()):
        raise UsageError("there is one arm: nothing says in what the second differs", hint=_EXAMPLES)
    started = dict(zip(ARMS, (commands[0], commands[-1]), strict=True))
    _check_bindings(bindings, started, bool(paths))
    if reductions and not any(paths.values()):
        raise UsageError("--reductions lets sums go by a profile, and no arm has one",
                         hint="--profile FILE --reductions")  # fmt: skip
    loaded = {arm: _loaded(paths.get(arm, ""), started[arm] or ("",), allow_env, reductions) for arm in ARMS}
    return {
        arm: ProgramArm(
            name=arm, command=started[arm], env=settings[arm], profile=loaded[arm][0],
            profile_digest=loaded[arm][1], profiled=bool(paths),
            reductions=reductions and bool(paths.get(arm)), settings_of=loaded[arm][2] if paths else {},
            binding=bindings[min(number, len(bindings) - 1)] if bindings else "",
        )
        for number, arm in enumerate(ARMS)
    }  # fmt: skip


def _check_bindings(bindings: Sequence[str], started: Mapping[str, Sequence[str]], profiled: bool) -> None:
    if len(bindings) > len(ARMS):
        raise UsageError(f"{len(bindings)} bindings, and there are {len(ARMS)} arms", hint="compare two at a time")
    if bindings and profiled:
        raise UsageError("binding and a profile are both set", hint="a profile has a binding of its own")
    for command in started.values() if bindings else ():
        if command and not programs.starts_ranks(command):
            raise UsageError(
                f"binding={','.join(bindings)}: ranks bind themselves where they import torch, and {command[0]!r} is "
                "not a launcher of torch programs",
                hint="-- torchrun ..; other launchers bind ranks by options of their own: -- A .. ::: B ..",
            )


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


def _loaded(
    path: str, command: Sequence[str], allow_env: Sequence[str], reductions: bool
) -> tuple[str, str, dict[str, str]]:
    """Return path and digest of a profile, and the variables of a program under it; of none those that take it away."""
    if not path:
        taken = (variables.BACKEND, variables.PROFILE, variables.SCOPE, variables.REDUCTIONS)
        return "", "", dict.fromkeys(taken, variables.UNSET)
    full = Path(path).absolute()
    profile = file.load(full)
    settings = {variables.BACKEND: "profile", variables.PROFILE: str(full)}
    settings |= {variables.REDUCTIONS: "1"} if reductions else {}
    if len(profile.scopes) == 1:  # of several, ranks find the one that is theirs
        scope = profile.scopes[0]
        variables.refuse_code(scope.env, f"the profile {path}", allow_env)
        if scope.binding != "none" and not programs.binds_later(scope, command):
            raise UsageError(
                f"{path} asks for binding={scope.binding}, which ranks apply where they import torch, and "
                f"{command[0]!r} is not a launcher of torch programs",
                hint="-- torchrun .., or a profile without a binding",
            )
        settings = programs.settings(scope, full, bound=False, reductions=reductions)
    return str(full), digest(file.dump(profile)), settings


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
    if one.binding != two.binding:
        for arm in (one, two):
            words[arm.name].append(f"binding={arm.binding}")
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
