"""Records as one JSON object a line, and back, with every value checked; digests of values."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import types
import typing
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")
STORED_AS = "stored_as"  # in the metadata of a field: the name that it has in files, where that is another one


def digest(value: Any) -> str:
    """Twelve hex digits of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _stored_name(field: dataclasses.Field[Any]) -> str:
    name: str = field.metadata.get(STORED_AS, field.name)
    return name


def as_dict(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by the names that they have in files; fields inside of fields have their own."""
    values = dataclasses.asdict(record)
    return {_stored_name(field): values[field.name] for field in dataclasses.fields(record)}


def to_json(record: Any) -> str:
    """One line. NaN and infinity are refused: a number that was not measured is null."""
    return json.dumps(as_dict(record), separators=(",", ":"), allow_nan=False)


def from_dict(cls: type[T], raw: Any) -> T:
    """A record from parsed JSON; `ValueError` names the field that is missing, unknown or of the wrong type."""
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object of {cls.__name__}, found {type(raw).__name__}")
    hints = typing.get_type_hints(cls)
    known = {_stored_name(f): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if extra := raw.keys() - known.keys():
        raise ValueError(f"unknown field {sorted(extra)[0]!r} of {cls.__name__}")
    values = {}
    for name, f in known.items():
        if name not in raw:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ValueError(f"field {name!r} of {cls.__name__} is missing")
            continue
        values[f.name] = _convert(name, hints[f.name], raw[name])
    return cls(**values)


def _convert(name: str, hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        if value is None and type(None) in typing.get_args(hint):
            return None
        for alternative in typing.get_args(hint):
            with contextlib.suppress(ValueError):
                return _convert(name, alternative, value)
        raise ValueError(f"field {name!r} is {value!r}, expected {hint}")
    if origin is typing.Literal and value in typing.get_args(hint):
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type[Any], hint), value)
    if origin is dict and isinstance(value, dict):
        inner = typing.get_args(hint)[1]
        return {key: _convert(f"{name}.{key}", inner, item) for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_convert(name, typing.get_args(hint)[0], item) for item in value]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    plain = isinstance(hint, type) and hint is not float  # one that is not finite is no number
    if plain and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ValueError(f"field {name!r} is {value!r}, expected {getattr(hint, '__name__', hint)}")


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Parse JSON that may hold anything. Raises `ValueError` for whatever is none, nests too deeply, or has a number
    that Python does not read; with `finite` also for NaN and numbers beyond those of a float.
    """

    def number(word: str) -> float:
        value = float(word)
        if not math.isfinite(value):
            raise ValueError(f"{word} is no finite number")
        return value

    try:
        return json.loads(text, parse_float=number, parse_constant=number) if finite else json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def parse_line(cls: type[T], line: str) -> T:
    return from_dict(cls, parse_json(line))
