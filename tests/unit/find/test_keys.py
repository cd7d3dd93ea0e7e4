"""Every key is listed with its default and what it may be, and each has a text of its own."""

from __future__ import annotations

import pytest

from commbench.cli import _main
from commbench.commands.options import SHORT
from commbench.find import keys
from commbench.sweep import keys as swept
from commbench.train import config as trained


@pytest.mark.parametrize("width", [80, 100])
def test_the_list_has_every_key_and_fits(width: int) -> None:
    lines = keys.listed(width).splitlines()
    heads = [line.split("=")[0].split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert set(heads) >= swept.KEYS.keys() | trained.KEYS.keys() | {"sizes", "env.NAME", "budget", "gain", "rounds"}
    assert sorted(set(heads)) == keys.names()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("name", keys.names())
def test_a_key_in_full_says_default_and_what_it_may_be(name: str) -> None:
    text = keys.one(name, 80, SHORT)
    count = sum(name in table.keys for table in keys.tables())
    for head in ("meaning", "default", "may be", "several"):
        assert text.count(f"\n  {head}") == count, head
    assert max(map(len, text.splitlines())) <= 80


def test_a_key_of_several_commands_is_told_of_each() -> None:
    text = keys.one("dtype", 100, SHORT)
    assert "commbench sweep quick dtype=fp16" in text and "-d, --dtype" in text
    assert "commbench train tiny dtype=bf16" in text and "fp32, bf16, fp64" in text
    assert "a whole number from 1 to 10000" in keys.one("launches", 100, SHORT)
    assert "a whole number or null, 1 or more" in keys.one("parts", 100, SHORT)


def test_the_variable_of_anybody_is_env_name() -> None:
    assert keys.one("env.NCCL_ALGO", 100, SHORT) == keys.one("env.NAME", 100, SHORT)


def test_the_nearest_key_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["keys", "sizs.max"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown key 'sizs.max'\nhint: did you mean sizes.max")
