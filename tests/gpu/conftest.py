"""The order of GPU tests: those that fork come first, as nothing forked from a process can use CUDA once it has."""

from __future__ import annotations

import pytest

_FORKING = (
    "test_backend",
    "test_checked_calls",
    "test_communicator",
    "test_data_parallel",
    "test_nccl",
    "test_schedules",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Of several xdist workers, too, each runs what it gets in this order.
    items.sort(key=lambda item: item.path.parent.name == "gpu" and item.path.stem not in _FORKING)
