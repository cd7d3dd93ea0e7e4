"""Records as one JSON object a line, and back, with every value checked; digests and checksums of values."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import math
import reprlib
import sys
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
STORED_AS = "stored_as"  # in the metadata of a field: the name that it has in files, where that is another one

_PLAIN = frozenset({int, float, str, bool, type(None)})
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_COMPACT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_INT64 = 2**63  # nothing that is counted or stored has more bits
_MOST_KNOWN = 1024
_SHORT = reprlib.Repr()  # of values in errors
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 40


def digest(value: Any) -> str:
    """Twelve hex digits of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:12]


def canonical(value: Any) -> str:
    """Return the one JSON text that a value has, whatever the order of its keys."""
    return _CANONICAL.encode(value)


def digest_of_parts(parts: Mapping[str, str]) -> str:
    """Return what `digest` gives for an object whose values are there as canonical JSON already."""
    text = ",".join(f'"{key}":{parts[key]}' for key in sorted(parts))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()[:12]


class ListDigest:
    """The digest of a list that nobody holds as a whole: what `digest` gives for all items together."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"[")
        self._between = b""

    def add(self, item: Any) -> None:
        self._hash.update(self._between + canonical(item).encode())
        self._between = b","

    def __str__(self) -> str:
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()[:12]


_READERS: dict[str, Callable[[str, Any], Any]] = {}  # of types, by their text


class _Field(NamedTuple):
    name: str
    stored: str
    needed: bool
    convert: Callable[[str, Any], Any]  # gets the stored name, for errors, and the value


def _stored_name(field: dataclasses.Field[Any]) -> str:
    name: str = field.metadata.get(STORED_AS, field.name)
    return name


@functools.cache
def _names(cls: type[Any]) -> tuple[tuple[str, str], ...]:
    """Return (attribute, name in files) of each field."""
    return tuple((field.name, _stored_name(field)) for field in dataclasses.fields(cls))


def as_dict(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by the names that they have in files; fields inside of fields have their own."""
    return {stored: _as_plain(getattr(record, name)) for name, stored in _names(record.__class__)}


def _as_plain(value: Any) -> Any:
    """Return what `dataclasses.asdict` makes of a field, much faster where it is plain."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        return {key: _as_plain(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind([_as_plain(item) for item in value])
    if dataclasses.is_dataclass(kind):
        return {name: _as_plain(getattr(value, name)) for name, _ in _names(kind)}
    return copy.deepcopy(value)


def to_json(record: Any) -> str:
    """One line. NaN and infinity are refused: a number that was not measured is null."""
    return _COMPACT.encode(as_dict(record))


def from_dict(cls: type[T], raw: Any) -> T:
    """A record from parsed JSON; `ValueError` names the field that is missing, unknown or of the wrong type."""
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object of {cls.__name__}, found {type(raw).__name__}")
    fields = _fields(cls)  # type: ignore[arg-type]
    values = {}
    for name, stored, needed, convert in fields:
        if stored in raw:
            values[name] = convert(stored, raw[stored])
        elif needed:
            raise ValueError(f"field {stored!r} of {cls.__name__} is missing")
    if len(values) < len(raw):
        extra = raw.keys() - {field.stored for field in fields}
        raise ValueError(f"unknown field {min(map(str, extra))!r} of {cls.__name__}")
    return cls(**values)


@functools.cache
def _fields(cls: type[Any]) -> tuple[_Field, ...]:
    """Return how to read the fields of a record. Hints are resolved once for each class: that takes long."""
    hints = typing.get_type_hints(cls)
    return tuple(
        _Field(
            name=field.name,
            stored=_stored_name(field),
            needed=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            convert=_converter(hints[field.name]),
        )
        for field in dataclasses.fields(cls)
    )


def _wrong(name: str, value: Any, hint: Any) -> ValueError:
    return ValueError(f"field {name!r} is {_SHORT.repr(value)}, expected {getattr(hint, '__name__', hint)}")


def _converter(hint: Any) -> Callable[[str, Any], Any]:
    """Return a function that checks a value against `hint`. It gets the name of the field, which errors say."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return _union(hint, [_converter(item) for item in inner if item is not types.NoneType], types.NoneType in inner)
    if origin is typing.Literal:
        return _one_of(hint, inner)
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type[Any], hint))
    if origin is dict:
        return _dict_of(hint, _converter(inner[1]))
    if origin in (list, tuple):
        return _list_of(hint, origin, _converter(inner[0]))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _one_of(hint, hint)
    if hint is float:
        return _float
    if hint is Any:
        return lambda name, value: value
    return _exactly(hint)


def _record(cls: type[Any]) -> Callable[[str, Any], Any]:
    """Return how to read a record inside of another. Many have the same, which is made once: it cannot be changed."""
    known: dict[str, Any] = {}

    def convert(name: str, value: Any) -> Any:
        try:
            key = repr(value)
        except RecursionError:
            raise ValueError(f"field {name!r} nests too deeply") from None
        if (record := known.get(key)) is None:
            if len(known) >= _MOST_KNOWN:
                known.clear()
            record = known[key] = from_dict(cls, value)
        return record

    return convert if cls.__dataclass_params__.frozen else lambda name, value: from_dict(cls, value)


def _union(hint: Any, alternatives: list[Callable[[str, Any], Any]], nothing: bool) -> Callable[[str, Any], Any]:
    def convert(name: str, value: Any) -> Any:
        if value is None and nothing:
            return None
        for alternative in alternatives:
            try:
                return alternative(name, value)
            except ValueError:
                continue
        raise ValueError(f"field {name!r} is {_SHORT.repr(value)}, expected {hint}")

    return convert


def _one_of(hint: Any, allowed: Iterable[Any]) -> Callable[[str, Any], Any]:
    known = {str(item): item for item in allowed}

    def convert(name: str, value: Any) -> Any:
        if isinstance(value, str) and value in known:
            return known[value]
        raise _wrong(name, value, hint)

    return convert


def _dict_of(hint: Any, item: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    def convert(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item(f"{name}.{key}", inner) for key, inner in value.items()}
        raise _wrong(name, value, hint)

    return convert


def _list_of(hint: Any, kind: type[Any], item: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    def convert(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return kind([item(name, inner) for inner in value])
        raise _wrong(name, value, hint)

    return convert


def _float(name: str, value: Any) -> float:
    if type(value) is float or type(value) is int:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise _wrong(name, value, float)


def _exactly(hint: Any) -> Callable[[str, Any], Any]:
    def convert(name: str, value: Any) -> Any:
        if type(value) is hint:
            return value
        raise _wrong(name, value, hint)

    def text(name: str, value: Any) -> str:
        if type(value) is str:
            return sys.intern(value)  # of 100,000 lines most have the same words
        raise _wrong(name, value, hint)

    def whole(name: str, value: Any) -> int:
        if type(value) is int and -_INT64 <= value < _INT64:
            return value
        raise _wrong(name, value, hint)

    return text if hint is str else whole if hint is int else convert


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Parse JSON that may hold anything. Raises `ValueError` for whatever is none, nests too deeply, or has a number
    that Python does not read; with `finite` also for NaN and numbers beyond those of a float.
    """

    def number(word: str) -> float:
        value = float(word)
        if not math.isfinite(value):
            raise ValueError(f"{word} is not a finite number")
        return value

    try:
        return json.loads(text, parse_float=number, parse_constant=number) if finite else json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def check_types(raw: Any, hints: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> None:
    """Raise `ValueError` where an object lacks one of the keys of `hints`, or has a value of another type than they and
    `optional` say.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, found {type(raw).__name__}")
    if missing := hints.keys() - raw.keys():
        raise ValueError(f"{min(missing)!r} is missing")
    for key, hint in {**hints, **(optional or {})}.items():
        if key in raw:
            _reader(hint)(key, raw[key])


def _reader(hint: Any) -> Callable[[str, Any], Any]:
    key = repr(hint)
    if key not in _READERS:
        _READERS[key] = _converter(hint)
    return _READERS[key]


# A checksum is the last key of an object, in a line of its own where the object has lines.
_SEALS = ((b',"crc32":"', b'"}'), (b',\n "crc32": "', b'"\n}'))
_CRC_DIGITS = 8


def seal(text: str) -> str:
    """Return the text of a JSON object, not an empty one, with a checksum of all its bytes as its last key."""
    before, after = _SEALS[text.endswith("\n}")]
    body = text[: 1 - len(after)].encode()
    return (body + before + _checksum(body) + after).decode()


def unseal(data: bytes) -> bytes:
    """Return the text of a JSON object without its checksum. Raises `ValueError` where that does not fit.

    An object without one is as it is.
    """
    data = data.rstrip(b"\r\n")
    for before, after in _SEALS:
        body, framed, said = _parts(data, before, after)
        fits = said == _checksum(body)
        if framed and fits:
            return body + b"}"
        if framed or fits:  # whichever of both is damaged
            raise ValueError("its checksum does not fit")
    if b"crc32" in data[-64:]:
        raise ValueError("its checksum is damaged")
    return data


def is_sealed(data: bytes) -> bool:
    """Return whether this is the text of an object with a checksum that fits."""
    data = data.rstrip(b"\r\n")
    for before, after in _SEALS:
        body, framed, said = _parts(data, before, after)
        if framed and said == _checksum(body):
            return True
    return False


def _parts(data: bytes, before: bytes, after: bytes) -> tuple[bytes, bool, bytes]:
    """Return what comes before a checksum, whether all is there that is around one, and the checksum."""
    end = len(data) - len(after)
    begin = max(0, end - _CRC_DIGITS - len(before))
    framed = data.startswith(before, begin) and data.endswith(after)
    return data[:begin], framed, data[max(0, end - _CRC_DIGITS) : end]


def _checksum(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)


def parse_line(cls: type[T], line: str | bytes) -> T:
    return from_dict(cls, parse_json(line))
