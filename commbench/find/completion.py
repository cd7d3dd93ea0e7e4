"""What may stand where somebody pressed the tab key: recipes, keys, values of a key.

Shells that break words at `=` give a value without its key: `dtype`, `=`, `b`. Others give `dtype=b`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from commbench.find import keys, layer
from commbench.strategy import models
from commbench.sweep import recipes
from commbench.sweep.key import Key, OneOf, word
from commbench.train import config as train

_ENV = "env.NAME"


def complete(command: str, typed: Sequence[str], incomplete: str) -> list[str]:
    """Return what `incomplete` may become, as the shell has it, after the words `typed` of a command."""
    known = _keys_of(command)
    if broken_at := _key_before(typed, known):
        return _values(known[broken_at], incomplete)
    name, separator, value = incomplete.partition("=")
    if separator:
        return [f"{name}={found}" for found in _values(known[name], value)] if name in known else []
    names = ("env." if name == _ENV else f"{name}=" for name in known)
    return _beginning(incomplete, [*(_recipes(command) if not typed else []), *names])


def recipe_names(incomplete: str) -> list[str]:
    return _beginning(incomplete, [*_recipes("sweep"), *_recipes("train")])


def key_names(incomplete: str) -> list[str]:
    return _beginning(incomplete, keys.names())


def _keys_of(command: str) -> Mapping[str, Key]:
    if command == "advise":
        return layer.KEYS
    return {name: key for table in keys.tables() if command in table.commands for name, key in table.keys.items()}


def _recipes(command: str) -> list[str]:
    """Return the recipes that a command may begin with."""
    if command in ("sweep", "tune"):
        return recipes.groups()["recipe"]
    if command == "plan":
        return models.names()
    return train.names() if command in ("train", "train ab") else []


def _key_before(typed: Sequence[str], known: Mapping[str, Key]) -> str:
    """Return the key whose value is being typed, where the shell has broken the word at `=`; else ""."""
    last = [one for one in typed[-2:] if one != "="][-1:]
    return last[0] if last and last[0] in known else ""


def _values(key: Key, incomplete: str) -> list[str]:
    """Return values that a key may have; of an axis, after those that stand there."""
    if not isinstance(key.check, OneOf):
        return []
    before, comma, last = incomplete.rpartition(",") if key.axis else ("", "", incomplete)
    return [f"{before}{comma}{one}" for one in _beginning(last, map(word, key.check.choices))]


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
