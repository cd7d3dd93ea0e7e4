"""Plans, keys, dry runs and a tuned profile are those of before."""

from __future__ import annotations

import pytest

from tests.support import goldens


@pytest.mark.parametrize("name", goldens.TEXTS)
def test_nothing_changed_by_itself(name: str) -> None:
    assert goldens.text(name) == (goldens.FOLDER / name).read_text()


def test_every_recorded_file_is_compared() -> None:
    assert {path.name for path in goldens.FOLDER.iterdir()} == {*goldens.TEXTS, "losses.json"}
