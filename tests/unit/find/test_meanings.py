"""Each word that a user meets has an explanation, and the reference defines each."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from commbench.analysis.ratios import Speedup
from commbench.cli import _main
from commbench.find import meanings
from commbench.find.meanings import COLUMN, FABRIC, STATUS, STOP, TABLE, TUNED, VERDICT, WARNING, Meaning
from commbench.output import table
from commbench.records import STOP_REASONS, Fabric, Row, Status
from commbench.stats import Verdict
from tests.conftest import REPOSITORY

METRICS = (REPOSITORY / "docs/reference/metrics.md").read_text()


def of(kind: str) -> list[str]:
    return [one.name for one in TABLE if one.kind == kind]


def test_every_column_status_stop_reason_and_verdict_is_explained() -> None:
    fields = [field.name for record in (Row, Speedup) for field in dataclasses.fields(record)]
    assert sorted(of(COLUMN)) == sorted(fields)
    assert of(STATUS) == [status.value for status in Status]
    assert of(STOP) == list(STOP_REASONS)
    assert of(VERDICT) == [verdict.value for verdict in Verdict]
    assert of(FABRIC) == [fabric.value for fabric in Fabric]
    twice = Counter((one.kind, one.name) for one in TABLE)
    assert set(twice.values()) == {1}


@pytest.mark.parametrize("one", [one for one in TABLE if one.kind != WARNING], ids=lambda one: f"{one.kind} {one.name}")
def test_the_reference_defines_the_word_where_the_explanation_says(one: Meaning) -> None:
    section = METRICS.split(f"\n## {one.section}\n")[1].split("\n## ")[0]
    assert f"`{one.name}`" in section or f"| {one.name} |" in section


def test_the_table_of_words_in_the_reference_is_that_of_the_code() -> None:
    text = METRICS.split("## Words of a row\n")[1].split("\n## ")[0]
    shown = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert shown == [f"| {one.kind} | `{one.name}` | {one.text} |" for one in TABLE if one.section == "Words of a row"]


@pytest.mark.parametrize("name", of(WARNING))
def test_a_warning_is_one_that_the_code_gives(name: str) -> None:
    files = [path for path in (REPOSITORY / "commbench").rglob("*.py") if path.name != "meanings.py"]
    assert any(name in path.read_text() for path in files)


def test_headings_of_the_table_and_whole_warnings_are_found() -> None:
    assert [one.name for one in meanings.find("of_bound")] == ["bound_fraction"]
    assert [one.kind for one in meanings.find("low")] == [COLUMN, TUNED]
    for column in table.columns([], {}):
        for heading in {column.name, column.heading or column.name} - {"round", "verdict"}:
            assert meanings.find(heading), heading
    assert [one.name for one in meanings.find("vs_binding=none")] == ["speedup"]
    assert [one.name for one in meanings.find("warning: 4 ranks share 2 CPUs, so times")] == ["ranks share"]
    assert [one.name for one in meanings.find("preempted")] == ["preempted"]
    assert {one.kind for one in meanings.find("pairs")} == {COLUMN, TUNED}


@pytest.mark.parametrize("width", [80, 100])
def test_all_fits_into_a_terminal(width: int) -> None:
    texts = [meanings.listed(width), *(meanings.explained(name, width) for name in meanings.names())]
    assert max(len(line) for text in texts for line in text.splitlines()) <= width


@pytest.mark.parametrize(
    ("typed", "hint"), [("busbww", "did you mean busbw"), ("what is this", "commbench explain lists all of them")]
)
def test_an_unknown_word_is_one_line_and_a_hint(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["explain", *typed.split()]) == 2
    error, hinted = capsys.readouterr().err.splitlines()
    assert error == f"error: unknown word '{typed}'" and hint in hinted
