"""What conftest.py asks of tests."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from tests import conftest

CASES = [  # seconds, load, marks, whether it fails
    (11, 0, ["unit"], True), (9, 0, ["unit"], False), (11, 0, ["gloo"], False), (11, 0, ["unit", "slow"], False),
    (11, 1e4, ["unit"], False), (21, 1e4, ["unit"], True),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "load", "marks", "fails"), CASES)
def test_a_unit_test_that_computes_for_long_fails(seconds: float, load: float, marks: list[str], fails: bool) -> None:
    class Item:
        def get_closest_marker(self, name: str) -> Any:
            return name in marks

    clock = mock.patch.object(conftest, "cpu_s", iter([100.0, 100.0 + seconds]).__next__)
    with clock, mock.patch("os.getloadavg", lambda: (load, 0.0, 0.0)):
        called = conftest.pytest_pyfunc_call(Item())  # type: ignore[arg-type]
        next(called)
        with pytest.raises(AssertionError if fails else StopIteration, match="of CPU time" if fails else None):
            called.send(True)
