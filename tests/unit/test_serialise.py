"""Records to JSON and back: what is there comes back the same, anything else is refused in words."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any

import pytest

from commbench.records import Case
from commbench.serialise import ListDigest, as_dict, digest, from_dict
from tests.support.fake_runs import planned


@dataclass(frozen=True, kw_only=True)
class Inner:
    name: str
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outer:
    size: int
    share: float | None = None
    inner: Inner | None = None
    values: list[int | float | str] = field(default_factory=list)
    on: bool = False


def test_a_record_comes_back_the_same_and_shares_what_is_alike() -> None:
    raw = {"size": 1, "share": 2, "inner": {"name": "a", "counts": {"b": 3}}, "values": [1, 1.5, "x"], "on": True}
    one, two = from_dict(Outer, raw), from_dict(Outer, raw)
    assert one == Outer(size=1, share=2.0, inner=Inner(name="a", counts={"b": 3}), values=[1, 1.5, "x"], on=True)
    assert one.inner is two.inner and one.inner is not None
    assert from_dict(Outer, {**raw, "inner": {"name": "a"}}).inner == Inner(name="a")
    assert as_dict(one) == {**raw, "share": 2.0} == dataclasses.asdict(one)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": True}, "field 'size' is True, expected int"),
        ({"size": 1.0}, "field 'size' is 1.0, expected int"),
        ({"size": 2**63}, "field 'size' is 9223372036854775808, expected int"),
        ({"share": "1"}, "field 'share' is '1', expected float | None"),
        ({"share": 10**400}, r"field 'share' is 10+\.\.\.0+, expected float | None"),
        ({"share": float("nan")}, "field 'share' is nan"),
        ({"inner": []}, "field 'inner' is [], expected"),
        ({"inner": {"name": "a", "counts": {"b": None}}}, "field 'inner' is {"),
        ({"values": [[]]}, "field 'values' is [], expected int | float | str"),
        ({"values": ["x", None]}, "field 'values' is None"),
        ({"on": 1}, "field 'on' is 1, expected bool"),
        ({"other": 1}, "unknown field 'other' of Outer"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        from_dict(Outer, {"size": 1, **change})
    assert str(caught.value).startswith(words.split("10+")[0]), str(caught.value)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="field 'size' of Outer is missing"):
        from_dict(Outer, {})


def test_hints_are_resolved_once_a_class_not_once_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    case = planned("launches=1")[0]
    line = json.dumps(as_dict(case))
    assert from_dict(Case, json.loads(line)) == case
    monkeypatch.setattr(typing, "get_type_hints", None)
    assert from_dict(Case, {**json.loads(line), "dtype": "bf16"}).dtype == "bf16"


def test_a_list_has_its_digest_piece_by_piece() -> None:
    items = [{"b": 1, "a": [1.5, None]}, "x", 3]
    for number in range(len(items) + 1):
        pieces = ListDigest()
        for item in items[:number]:
            pieces.add(item)
        assert str(pieces) == digest(items[:number])


def test_a_case_has_the_id_of_its_canonical_json() -> None:
    """As it was computed before its parts were kept."""
    for case in planned("launches=1", "fabric=emulated", "link=1gbit", "spines=1,2", "nodes=2"):
        values = as_dict(case)
        outer = {key: value for key, value in values["outer"].items() if key in
                 ("transport", "nodes", "ranks_per_node", "env", "script", "emulated")}  # fmt: skip
        if outer["emulated"]:
            outer["emulated"] = {key: value for key, value in outer["emulated"].items() if key != "slow_link"}
        assert case.case_id == digest({**values, "outer": outer})
