"""Plans, keys, dry runs and a tuned profile are those of before."""

from __future__ import annotations

import pytest

from tests import golden


@pytest.mark.parametrize("name", golden.TEXTS)
def test_nothing_changed_by_itself(name: str) -> None:
    assert golden.text(name) == (golden.FOLDER / name).read_text()


def test_every_recorded_file_is_compared() -> None:
    assert {path.name for path in golden.FOLDER.iterdir()} == {*golden.TEXTS, "losses.json"}
