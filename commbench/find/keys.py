"""Every key of every command, from the tables that the commands read: listed, or one of them in full."""

from __future__ import annotations

import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from commbench.ab import plan as ab
from commbench.check import keys as check
from commbench.find.words import unknown_name
from commbench.strategy import keys as planned
from commbench.sweep import foreign_keys, keys, recipes
from commbench.sweep.key import NO_DEFAULT, Key, OneOf, Parsed, explain, word
from commbench.train import config as train
from commbench.train.key import TrainKey
from commbench.tune import keys as tune

_ENV = Key(
    Parsed(lambda name, value: value, "any text; unset: without the variable"),
    "an environment variable of the ranks, as env.NCCL_ALGO=Ring,Tree",
    axis=True,
)
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}


@dataclass(frozen=True, slots=True)
class KeyTable:
    """The keys of commands that share them."""

    commands: tuple[str, ...]  # the first one is shown in examples
    keys: Mapping[str, Key]
    groups: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"Keys of {' and '.join(f'commbench {name}' for name in self.commands)}"


def tables() -> tuple[KeyTable, ...]:
    """Return the keys of all commands, each key with all that it may be."""
    choices = OneOf(tuple(recipes.groups()["sizes"]))
    sizes = Key(choices, "a range of sizes by name", default="default", axis=True, group=keys.SIZES)
    swept = {"sizes": sizes, **keys.KEYS, "env.NAME": replace(_ENV, group=keys.RANKS)}
    kinds = typing.get_type_hints(train.TrainConfig)
    trained = {name: replace(key, check=_of_type(kinds[name], key)) for name, key in train.KEYS.items()}
    trained["env.NAME"] = TrainKey(_ENV.check, _ENV.help, group=train.GROUPS[-1])
    timed = {**ab.KEYS, **foreign_keys.KEYS}
    timed_groups = tuple(dict.fromkeys(key.group for key in timed.values()))
    return (
        KeyTable(("sweep", "tune"), swept, keys.GROUPS),
        KeyTable(("tune",), tune.KEYS, (tune.GROUP,)),
        KeyTable(("check",), check.KEYS, (check.GROUP,)),
        KeyTable(("train", "train ab"), trained, train.GROUPS),
        KeyTable(("ab",), timed, timed_groups),
        KeyTable(("plan",), planned.KEYS, planned.GROUPS),
    )


def _of_type(kind: object, key: Key) -> Parsed | OneOf:
    """Return the check with the type that it asks for; words say in the help which there are."""
    if isinstance(key.check, OneOf):
        return key.check
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    allowed = " or ".join(_TYPES[one] for one in kinds)
    return Parsed(key.check, f"{allowed}, {key.check}" if str(key.check) else allowed)


def names() -> list[str]:
    """Return the name of every key, each once."""
    return sorted({name for table in tables() for name in table.keys})


def listed(width: int) -> str:
    """Return all keys, by command and group, in lines of `width` letters."""
    head = (
        "Settings are typed as KEY=VALUE. Each key stands here with its default and what it may be. [axis]: KEY=A,B "
        "measures both. commbench keys NAME says all of one key."
    )
    lines = [*textwrap.wrap(head, width)]
    for table in tables():
        lines += ["", table.title, explain(table.keys, table.groups, width, limits=True).rstrip()]
    return "\n".join(lines) + "\n"


def one(name: str, width: int, options: Mapping[str, Sequence[str]]) -> str:
    """Return all that is known of one key, for each command that has it. Raises `UsageError` for an unknown one.

    options: those of a sweep that set a key, as `-b` and `--min-bytes` set sizes.min.
    """
    wanted = "env.NAME" if name.startswith("env.") else name
    found = [table for table in tables() if wanted in table.keys]
    if not found:
        raise unknown_name("key", name, names(), "commbench keys")
    return "\n".join(_full(wanted, table, width, options) for table in found)


def _full(name: str, table: KeyTable, width: int, options: Mapping[str, Sequence[str]]) -> str:
    key = table.keys[name]
    default = word(key.default)
    if key.default is NO_DEFAULT:
        set_by = "every recipe sets it" if table.commands[0] == "train" else "it has to be set"
        default = "none: it is off until it is set" if key.idle or key.axis else f"none: {set_by}"
    if name in keys.SIZE_KEYS and table.keys.get("sizes"):
        default = "by the range that sizes=NAME names"
    several = f"yes: {name}=A,B measures both" if key.axis else "no: one value"
    recipe = {"sweep": "quick ", "train": "tiny ", "tune": "quick ", "plan": "qwen3-30b-a3b "}.get(
        table.commands[0], ""
    )
    tail = " -- PROGRAM" if table.commands[0] == "ab" else ""
    facts = {
        "meaning": key.help,
        "default": default,
        "may be": str(key.check) or "see the meaning",
        "several": several,
        "option": ", ".join(options[name][:2]) if name in options and table.commands[0] == "sweep" else "",
        "note": key.idle and f"where it has no effect it is refused: {key.idle}",
        "type": "" if key.idle else f"commbench {table.commands[0]} {recipe}{name}={_example(key)}{tail}",
    }
    lines = [f"{name}, a key of {' and '.join(f'commbench {one}' for one in table.commands)}"]
    for head, text in facts.items():
        if text:
            start = f"  {head:<9}"
            lines += textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * 11,
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines) + "\n"


def _example(key: Key) -> str:
    if isinstance(key.check, OneOf):
        others = [choice for choice in key.check.choices if choice != key.default]
        return word(others[0])
    return "VALUE" if key.default is NO_DEFAULT or key.default is None else word(key.default)
