"""Each recipe is listed with its own description and what it needs, and shown with its settings and its plan."""

from __future__ import annotations

import pytest

from commbench.cli import _main
from commbench.find import recipes
from commbench.sweep import recipes as swept
from commbench.train import config as trained


def test_every_recipe_is_listed_with_its_sentence() -> None:
    found = recipes.read()
    assert recipes.names("sweep") == swept.groups()["recipe"]
    assert recipes.names("train") == trained.names()
    assert len(found) == len(recipes.names("sweep")) + len(recipes.names("train"))  # a name is one recipe
    for width in (80, 100):
        text = recipes.listed(width)
        assert max(map(len, text.splitlines())) <= width
        words = " ".join(text.split())
        for recipe in found.values():
            assert recipe.sentence and f"{recipe.name} {recipe.sentence} " in words


@pytest.mark.parametrize(
    ("name", "every", "some"),
    [
        ("quick", [], ["MPI", "network namespaces"]),
        ("moe", [], ["MPI"]),
        ("alltoall", [], []),
        ("2d_rate", ["network namespaces"], []),
        ("gpu", ["GPUs"], []),
        ("infiniband", ["GPUs", "2 hosts"], []),
        ("tiny", [], []),
        ("emulated-2x4", ["network namespaces"], []),
        ("table1-scaled", ["GPUs"], []),
    ],
)
def test_what_a_recipe_needs_follows_from_its_keys(name: str, every: list[str], some: list[str]) -> None:
    assert recipes.needs(recipes.read()[name].keys) == (every, some)


@pytest.mark.parametrize(("name", "said"), [("pairs", "launches: 6"), ("tiny", "steps: 300")])
def test_a_recipe_is_shown_with_settings_plan_and_time(name: str, said: str) -> None:
    text = recipes.one(name, 80)
    assert f"  {said}" in text and "Runs anywhere.\n" in text and "\n  time: " in text
    assert f"commbench {recipes.read()[name].command} {name}" in text


def test_the_nearest_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["recipes", "quik"]) == 2
    assert capsys.readouterr().err == "error: unknown recipe 'quik'\nhint: did you mean quick or quick_gpu?\n"
