"""A bus error names shared memory, its usual cause."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from commbench.processes.ended import by_signal


@pytest.mark.parametrize(
    ("free", "said"), [(0, "/dev/shm is full (0 B free of 64 MiB)"), (60, "has 60 MiB free of 64")]
)
def test_a_bus_error_names_shared_memory(free: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(f_bavail=free << 8, f_blocks=64 << 8, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    assert by_signal(7).startswith("was killed by signal 7 (SIGBUS): ") and said in by_signal(7)
    assert by_signal(9) == "was killed by signal 9 (SIGKILL)"
