"""Key: one KEY=VALUE setting. What it may be, what it is where nobody sets it, and what help says of it."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol, TypeVar

from commbench.errors import UsageError, unknown

NO_DEFAULT: Any = object()
_INDENT = 26  # of what help says of a key


class KeyCheck(Protocol):
    """Turn one value as it was read into the value that is used. `str()` of a check says what is allowed."""

    def __call__(self, name: str, value: Any) -> Any:
        """Raises `UsageError` for a value that cannot be meant."""
        ...


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few values."""

    choices: tuple[Any, ...]

    def __call__(self, name: str, value: Any) -> Any:
        if value not in self.choices:
            raise unknown(name, str(value), [word(choice) for choice in self.choices])
        return self.choices[self.choices.index(value)]

    def __str__(self) -> str:
        return ", ".join(map(word, self.choices))


@dataclass(frozen=True, slots=True)
class Number:
    """A number of one kind within limits."""

    kind: type[int] | type[float]
    smallest: float
    largest: float

    def __call__(self, name: str, value: Any) -> Any:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or (self.kind is int and not isinstance(value, int)) or not self.smallest <= value <= self.largest:
            raise UsageError(f"{name} is {value!r}", hint=str(self))
        return self.kind(value)

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} from {self.smallest} to {self.largest:.0f}"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a function makes of the name and the value."""

    parse: Callable[[str, Any], Any]
    allowed: str = ""

    def __call__(self, name: str, value: Any) -> Any:
        return self.parse(name, value)

    def __str__(self) -> str:
        return self.allowed


@dataclass(frozen=True, slots=True)
class Key:
    """One setting."""

    check: KeyCheck
    help: str
    _: KW_ONLY
    default: Any = NO_DEFAULT  # as a recipe would write it
    axis: bool = False  # whether it takes several values, each of which makes cases of its own
    group: str = ""  # under which help lists it
    optional: bool = False  # whether null is a value: `unset` then stands for it, or [] where this is an axis
    unset: Any = None
    idle: str = ""  # the hint where a user sets it and it has no effect; "": it always has one

    def read(self, name: str, value: Any) -> Any:
        """Return the checked value, or the checked values of an axis. Raises `UsageError`."""
        if value is None and self.optional:
            return [] if self.axis else self.unset
        if not self.axis:
            return self.check(name, value)
        return [self.check(name, item) for item in values_of(name, value)]


K = TypeVar("K", bound=Key)


def values_of(name: str, value: Any) -> list[Any]:
    """Return the values of an axis, each once. Raises `UsageError` where there is none."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or any(item is None for item in values):
        raise UsageError(f"{name} has no value", hint=f"write {name}=VALUE")
    if odd := [item for item in values if not isinstance(item, str | int | float)]:
        raise UsageError(f"{name} holds {odd[0]!r}", hint=f"write {name}=VALUE, or {name}=A,B for several")
    return list(dict.fromkeys(values))


def keys_of(config: type[Any], kind: type[K]) -> dict[str, K]:
    """Return the keys of a dataclass whose fields are annotated with them, as in Annotated[int, Key(..)].

    The default of a field is that of its key.
    """
    hints = typing.get_type_hints(config, include_extras=True)
    keys = {}
    for item in dataclasses.fields(config):
        (key,) = (mark for mark in hints[item.name].__metadata__ if isinstance(mark, kind))
        has_default = item.default is not dataclasses.MISSING
        keys[item.name] = dataclasses.replace(key, default=item.default) if has_default else key
    return keys


def explain(keys: Mapping[str, Key], groups: Iterable[str], width: int, *, limits: bool = False) -> str:
    """Return what help says of keys: a paragraph for each, `width` letters wide, under its group's heading.

    limits: also those of numbers, which an error names anyway.
    """
    lines: list[str] = []
    for group in groups:
        mine = {name: of for name, of in keys.items() if of.group == group}
        lines += ["", f"{group}:"] if mine else []
        for name, of in mine.items():
            head = f"  {name}{'' if of.default is NO_DEFAULT else f'={word(of.default)}'}"
            allowed = str(of.check) if limits or not isinstance(of.check, Number) else ""
            text = f"{'[axis] ' if of.axis else ''}{of.help}{f' ({allowed})' if allowed else ''}"
            lines += textwrap.wrap(
                text, width, initial_indent=head.ljust(_INDENT - 2) + "  ", subsequent_indent=" " * _INDENT,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines) + "\n"


def word(value: Any) -> str:
    """Return a value as it is typed: false, true, null."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
