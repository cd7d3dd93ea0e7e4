"""Profiles in files. What was cut off, edited, or written by a newer commbench is refused in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from commbench import algorithms, collectives, transports
from commbench.algorithms import outside
from commbench.binding import policies
from commbench.errors import CommbenchError, CorruptFile, UsageError
from commbench.files import write_named
from commbench.profile import FORMAT, FORMAT_VERSION, AlgorithmConfig, Choice, Profile, Scope
from commbench.serialise import digest, from_dict

_MENDING = "restore the file as `commbench tune` wrote it, or tune again"


NAME = "profile.json"  # in the folder of a tuning


def is_one(path: Path) -> bool:
    """Return whether a path is a profile, or a tuning's folder with one: by its first words, whole or not."""
    file = path / NAME if path.is_dir() else path
    try:
        with open(file, encoding="utf-8") as text:
            return f'"format": "{FORMAT}"' in text.read(200)
    except (OSError, UnicodeDecodeError):
        return False


def dump(profile: Profile) -> str:
    """Return the file's content: JSON, two-space indents, with the digest by which an edit is noticed."""
    body = dataclasses.asdict(profile)
    if not profile.outside:  # as files had it before there were such
        del body["outside"]
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "digest": digest(body)}
    return json.dumps({**head, **body}, indent=2, allow_nan=False) + "\n"


def save(profile: Profile, path: Path) -> None:
    """Write the profile. Raises `UsageError` where the file cannot be written."""
    problems = check(profile)
    if problems:
        raise ValueError(f"not a profile: {problems[0]}")
    try:
        write_named(path, dump(profile))
    except OSError as error:
        raise UsageError(
            f"cannot write {str(path)!r}: {error.strerror}", hint="--out FILE, in a folder of yours"
        ) from None


def load(path: Path) -> Profile:
    """Read a profile.

    Raises `UsageError` where there is no such file, or where it uses code that the user has not loaded, `CorruptFile`
    where it holds no profile.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            f"cannot read the profile {str(path)!r}: {why}",
            hint="give the file that `commbench tune --out FILE` wrote",
        ) from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Profile:
    """Return the profile in `text`; `name` is what errors call it."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{name} is not a whole JSON file: {error}", hint=_MENDING) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CorruptFile(f"{name} is not a profile: its `format` is not {FORMAT!r}", hint=_MENDING)
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise CorruptFile(
            f"{name} has profile format {version!r}, this commbench reads {FORMAT_VERSION}",
            hint="use the commbench version that wrote it, or tune again",
        )
    body = {key: value for key, value in raw.items() if key not in ("format", "format_version", "digest")}
    try:
        profile = from_dict(Profile, body)
    except (ValueError, TypeError) as error:
        raise CorruptFile(f"{name}: {error}", hint=_MENDING) from None
    if raw.get("digest") != digest(body):
        raise CorruptFile(f"{name} was changed after it was written: its digest does not fit", hint=_MENDING)
    outside.require(profile.outside, f"the profile {name}")
    if problems := check(profile):
        raise CorruptFile(f"{name}: {problems[0]}", hint=_MENDING)
    return profile


def check(profile: Profile) -> list[str]:
    """Return what makes a profile unusable, in words: unknown names, gaps, ranges that overlap."""
    ids = [scope.id for scope in profile.scopes]
    problems = [f"scope {id!r} is there twice" for id in {*ids} if ids.count(id) > 1]
    for scope in profile.scopes:
        problems += _of_scope(scope)
    curves: dict[str, list[Choice]] = {}
    for choice in profile.choices:
        if choice.scope not in ids:
            problems.append(f"a choice is of scope {choice.scope!r}, which is not there")
            continue
        problems += _of_choice(choice, profile.scope(choice.scope))
        curves.setdefault(repr(curve(choice)), []).append(choice)
    for choices in curves.values():
        problems += _of_ranges(choices)
    return problems


def curve(choice: Choice) -> tuple[Any, ...]:
    """Return what the choices of one list of ranges have in common."""
    return choice.scope, choice.collective, choice.captured, sorted(choice.arguments.items())


def _of_scope(scope: Scope) -> list[str]:
    problems = [] if scope.transport in transports.TABLE else [f"unknown transport {scope.transport!r}"]
    problems += [] if scope.id and scope.id.isprintable() else [f"{scope.id!r} cannot be the id of a scope"]
    problems += [] if scope.binding in policies.POLICIES else [f"unknown binding {scope.binding!r}"]
    problems += _of_masks(scope)
    for value in (scope.nodes, scope.ranks_per_node):
        problems += [] if value is None or value > 0 else [f"a layout of {scope.nodes} x {scope.ranks_per_node}"]
    problems += [f"{name!r} cannot be the name of a variable" for name in scope.env if not _is_variable(name)]
    problems += [f"{name} cannot be {value!r}" for name, value in scope.env.items() if not _is_value(value)]
    return problems


def _of_masks(scope: Scope) -> list[str]:
    try:
        policies.check_keys([scope.binding], scope.cpu_masks or None)
    except UsageError as error:
        return [str(error)]
    return []


def _is_variable(name: str) -> bool:
    return name.isascii() and name.isidentifier()


def _is_value(value: str) -> bool:
    """Return whether a variable can have it: any bytes but 0."""
    try:
        return b"\0" not in value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _of_choice(choice: Choice, scope: Scope) -> list[str]:
    if choice.collective not in collectives.TABLE:
        return [f"unknown collective {choice.collective!r}"]
    problems = []
    for config in (choice.config, choice.on_plain):
        problems += [] if config is None else _of_config(choice.collective, config)
    if scope.transport in transports.TABLE and choice.buffers not in transports.entry(scope.transport).buffers:
        problems.append(f"{scope.transport} has no {choice.buffers!r} buffers")
    return problems


def _of_config(collective: str, config: AlgorithmConfig) -> list[str]:
    try:
        known = algorithms.get(collective, config.algorithm).params
    except CommbenchError as error:
        return [str(error)]
    return [f"{config.algorithm} has no parameter {key!r}" for key in config.params if key not in known] + [
        f"{config.algorithm} lacks its parameter {key!r}" for key in known if key not in config.params
    ]


def _of_ranges(choices: Sequence[Choice]) -> list[str]:
    ordered = sorted(choices, key=lambda choice: choice.min_bytes)
    what = f"the ranges of {ordered[0].collective}"
    problems = [] if ordered[0].min_bytes == 0 else [f"{what} begin at {ordered[0].min_bytes}, not at 0"]
    problems += (
        [] if ordered[-1].max_bytes is None else [f"{what} end at {ordered[-1].max_bytes}; the last one is open"]
    )
    for one, two in pairwise(ordered):
        if one.max_bytes is None or one.max_bytes + 1 != two.min_bytes or one.max_bytes < one.min_bytes:
            problems.append(f"{what} do not follow each other: {one.max_bytes}, then {two.min_bytes}")
    return problems
