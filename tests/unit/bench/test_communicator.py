"""The bench of what a communicator costs beyond its algorithm."""

from __future__ import annotations

import pytest


def test_the_bench_measures_a_difference() -> None:
    pytest.importorskip("torch")
    from tests.bench import communicator

    calls, rounds = communicator.CALLS, communicator.ROUNDS
    communicator.CALLS, communicator.ROUNDS = 20, 3
    try:
        found = communicator.measure()
    finally:
        communicator.CALLS, communicator.ROUNDS = calls, rounds
    assert len(found) == 3 and all(low <= middle <= high for middle, low, high in found.values())
