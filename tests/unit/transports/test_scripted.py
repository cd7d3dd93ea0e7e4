"""The scripted transport is strict: what a careless algorithm gets away with elsewhere fails here for certain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from commbench.errors import UsageError
from commbench.machine import memory
from commbench.transports.base import Message
from commbench.transports.scripted.transport import Script, Scripted
from tests.conftest import scripted_ranks


def test_nothing_arrives_before_wait() -> None:
    def rank(transport: Scripted) -> tuple[bool, bool]:
        inp, out = np.full(32, 7 + transport.rank, np.uint8), np.zeros(32, np.uint8)
        work = transport.world.all_to_all(out, inp, step="a")  # type: ignore[arg-type]
        early = bool(out.any())
        work.wait()
        return early, bool(out.all())

    assert scripted_ranks(1, 2, rank) == [(False, True)] * 2


def test_an_exchange_that_nobody_waits_for_is_an_error() -> None:
    def rank(transport: Scripted) -> None:
        buffer = transport.world.empty(16)
        transport.world.exchange([], [Message(1 - transport.rank, buffer)], step="a")
        with pytest.raises(RuntimeError, match="never waited for"):
            transport.barrier()

    scripted_ranks(1, 2, rank)


def test_subgroups_of_subgroups_are_relative() -> None:
    """2D inside expert-parallel groups: the partition splits the communicator that it is called on."""

    def rank(transport: Scripted) -> tuple[int, int, int]:
        half = transport.world.subgroup([[0, 1, 2, 3], [4, 5, 6, 7]])
        rail = half.subgroup([[0, 2], [1, 3]])
        inp, out = np.full(2, transport.rank, np.uint8), np.zeros(2, np.uint8)
        rail.all_to_all(out, inp, step="x").wait()  # type: ignore[arg-type]
        return rail.rank, int(out[0]), int(out[1])

    results = scripted_ranks(2, 4, rank)
    assert results[0] == (0, 0, 2) and results[2] == (1, 0, 2) and results[5] == (0, 5, 7) and results[7] == (1, 5, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"alpha": 1}', "unknown key in the script 'alpha'"),
        ('{"faults": [{"kind": "explode"}]}', "unknown fault 'explode'"),
        ('{"faults": [{"kind": "flip", "when": 3}]}', "unknown key of a fault 'when'"),
    ],
)
def test_a_wrong_script_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Script.from_json(text)


def test_memory_is_what_the_kernel_and_the_control_group_leave(tmp_path: Any) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   1000000 kB\n")
    assert memory.available_bytes(tmp_path) == int(1_000_000 * 1024 * 0.9)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("300\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert memory.available_bytes(tmp_path) == int(1_000_000 * 1024 * 0.9)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1300\n")
    assert memory.available_bytes(tmp_path) == 900
