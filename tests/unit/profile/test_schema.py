"""docs/reference/profile.schema.json says neither more nor less than the records of a profile do."""

from __future__ import annotations

import copy
import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from commbench import profile
from commbench.algorithms.outside import OutsideAlgorithm
from commbench.binding import policies
from commbench.profile import FORMAT, FORMAT_VERSION, AlgorithmConfig, Choice, Evidence, Profile, Refused, Scope
from commbench.profile.file import dump
from tests.conftest import REPOSITORY
from tests.support.export_goldens import sample

SCHEMA = json.loads((REPOSITORY / "docs/reference/profile.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
_INNER = (Scope, AlgorithmConfig, Evidence, Choice, Refused, OutsideAlgorithm)
RECORDS = {"": Profile, **{cls.__name__: cls for cls in _INNER}}
OPTIONAL = {"outside"}  # of the file; the only field that older files lack
HEAD = {"format", "format_version", "digest"}
JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", list: "array", dict: "object"}
FILE = json.loads(dump(sample()))


def part(name: str) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA["$defs"][name] if name else SCHEMA
    return found


def json_types(hint: Any) -> set[str]:
    """Of a field's type; records are the names of their definitions."""
    if isinstance(hint, types.UnionType):
        return set().union(*map(json_types, typing.get_args(hint)))
    if hint is type(None):
        return {"null"}
    if dataclasses.is_dataclass(hint):
        return {f"#/$defs/{typing.cast(type, hint).__name__}"}
    return {JSON_TYPES[typing.get_origin(hint) or hint]}


def told(schema: dict[str, Any]) -> set[str]:
    if "anyOf" in schema:
        return set().union(*map(told, schema["anyOf"]))
    if "$ref" in schema:
        return {schema["$ref"]}
    if "enum" in schema:
        return {JSON_TYPES[type(value)] for value in schema["enum"]}
    return {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value in the file, with the way to it."""
    yield path, value
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def is_record(path: tuple[Any, ...], value: Any) -> bool:
    """Not what has keys of the user's own."""
    return isinstance(value, dict) and not (path and path[-1] in ("env", "versions", "params", "arguments"))


def test_it_is_a_schema_and_the_sample_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    VALIDATOR.validate(FILE)
    assert len(FILE["choices"][0]["params"]) == 2 and FILE["choices"][2]["evidence"], "the sample has all there is"


@pytest.mark.parametrize("name", RECORDS)
def test_its_properties_are_the_fields(name: str) -> None:
    cls, schema = RECORDS[name], part(name)
    fields = {field.name for field in dataclasses.fields(cls)}
    assert set(schema["properties"]) - (HEAD if name == "" else set()) == fields
    assert schema["required"] == [key for key in schema["properties"] if name or key not in OPTIONAL]
    assert schema["additionalProperties"] is False
    hints = typing.get_type_hints(cls)
    for field in fields:
        told_type = schema["properties"][field]
        assert told(told_type) == json_types(hints[field]), field
        assert told_type["description"], field
        if typing.get_origin(hints[field]) is list:
            assert told(told_type["items"]) == json_types(typing.get_args(hints[field])[0]), field
        if typing.get_origin(hints[field]) is dict:
            assert told(told_type["additionalProperties"]) == json_types(typing.get_args(hints[field])[1]), field


def test_it_is_of_this_version() -> None:
    assert set(RECORDS) - {""} == set(SCHEMA["$defs"])
    assert SCHEMA["properties"]["format"]["const"] == FORMAT
    assert SCHEMA["properties"]["format_version"]["const"] == FORMAT_VERSION
    assert tuple(part("Scope")["properties"]["binding"]["enum"]) == policies.POLICIES
    own = {
        name
        for name, item in vars(profile).items()
        if isinstance(item, type) and dataclasses.is_dataclass(item) and item.__module__ == profile.__name__
    }
    assert own == {cls.__name__ for cls in RECORDS.values()} - {"OutsideAlgorithm"}


def test_every_field_has_to_be_there_and_no_other() -> None:
    records = [path for path, value in places(FILE) if is_record(path, value)]
    assert len(records) > 20
    for path in records:
        for key in at(FILE, path):
            changed = copy.deepcopy(FILE)
            del at(changed, path)[key]
            assert not VALIDATOR.is_valid(changed), (path, key)
        changed = copy.deepcopy(FILE)
        at(changed, path)["colour"] = "red"
        assert not VALIDATOR.is_valid(changed), path


def test_every_value_has_its_type() -> None:
    for path, value in places(FILE):
        for wrong in ("x" if isinstance(value, list | dict | int | float | None) else 1, ["x"], {"x": ["x"]}, True):
            if not path or type(wrong) is type(value) or (path[-2:-1] == ("arguments",) and wrong in ("x", 1)):
                continue
            changed = copy.deepcopy(FILE)
            at(changed, path[:-1])[path[-1]] = wrong
            assert not VALIDATOR.is_valid(changed), (path, value, wrong)


@pytest.mark.parametrize(("path", "value"), [
    (("format",), "other"), (("format_version",), 2), (("digest",), "0B67F3A9472E"), (("digest",), "0"),
    (("scopes", 0, "id"), ""), (("scopes", 0, "nodes"), 0), (("scopes", 0, "binding"), "best"),
    (("scopes", 0, "env"), {"A B": "1"}), (("scopes", 2, "cpu_masks"), ""), (("choices", 0, "min_bytes"), -1),
    (("choices", 0, "max_bytes"), 1.5), (("choices", 2, "evidence", 0, "pairs"), -1),
    (("choices", 2, "evidence", 0, "p"), 1.01), (("minimum_gain",), -0.1), (("seconds",), None),
])  # fmt: skip
def test_what_cannot_be_is_refused(path: tuple[Any, ...], value: Any) -> None:
    changed = copy.deepcopy(FILE)
    assert at(changed, path) != value
    at(changed, path[:-1])[path[-1]] = value
    assert not VALIDATOR.is_valid(changed)


def test_the_documentation_has_every_field() -> None:
    text = (REPOSITORY / "docs/reference/profile.md").read_text()
    for cls in RECORDS.values():
        for field in dataclasses.fields(cls):
            assert f"`{field.name}`" in text, field.name
