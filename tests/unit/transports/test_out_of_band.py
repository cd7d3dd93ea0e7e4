"""Votes over TCP: what every rank gets, what happens while they wait, and who is named when one is gone."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from commbench.transports import out_of_band
from tests.conftest import PATIENCE_S, in_threads


def in_star(
    size: int, function: Callable[[int, out_of_band.Star], Any], meanwhile: Callable[[], object] = lambda: None
) -> list[Any]:
    """function(rank, star) in a thread for each rank."""
    told = threading.Event()
    port: list[int] = []

    def share(mine: int) -> int:
        if mine:
            port.append(mine)
            told.set()
        assert told.wait(10)
        return port[0]

    def body(rank: int) -> Any:
        end = out_of_band.meet(rank, size, "127.0.0.1", share, meanwhile)
        try:
            return function(rank, end)
        finally:
            end.close()

    return in_threads(size, body)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_get_every_rank_s_values(size: int) -> None:
    def votes(rank: int, end: out_of_band.Star) -> list[np.ndarray[Any, Any]]:
        end.barrier()
        return [end.all_gather([rank + turn, float("nan")]) for turn in range(50)] + [end.all_gather([])]

    for gathered in in_star(size, votes):
        for turn, table in enumerate(gathered[:-1]):
            assert table[:, 0].tolist() == [rank + turn for rank in range(size)] and np.isnan(table[:, 1]).all()
        assert gathered[-1].shape == (size, 0)


def test_rows_larger_than_what_the_kernel_buffers() -> None:
    tables = in_star(3, lambda rank, end: end.all_gather(np.full(1_000_000, rank)))
    assert all((table == np.arange(3)[:, None]).all() for table in tables)


def test_none_leaves_a_barrier_before_all_are_there() -> None:
    def late(rank: int, end: out_of_band.Star) -> tuple[float, float]:
        time.sleep(0.2 if rank == 2 else 0.0)
        came = time.monotonic()
        end.barrier()
        return came, time.monotonic()

    times = in_star(4, late)
    assert max(came for came, _ in times) <= min(left for _, left in times)


def test_a_library_goes_on_while_its_rank_waits() -> None:
    """Rank 1 votes only after something that rank 0 has to do, and can do while it waits only."""
    done = threading.Event()

    def body(rank: int, end: out_of_band.Star) -> None:
        if rank == 1:
            done.clear()  # what was done while they met
            assert done.wait(10)
        end.barrier()

    in_star(2, body, done.set)


@pytest.mark.parametrize(("gone", "named"), [(0, {"rank 0 is gone"}), (2, {"rank 2 is gone", "rank 0 is gone"})])
def test_who_is_gone_is_named(gone: int, named: set[str]) -> None:
    """Rank 0 knows who; the others know that rank 0 went, too."""

    def body(rank: int, end: out_of_band.Star) -> str:
        end.barrier()
        if rank == gone:
            return ""
        with pytest.raises(ConnectionError) as caught:
            for _ in range(3):
                end.barrier()
        return str(caught.value)

    told = in_star(3, body)
    assert set(told) - {""} == named
    if gone:
        assert told[0] == f"rank {gone} is gone"


def test_strangers_are_not_admitted_and_keep_nobody_waiting() -> None:
    """One says nothing, one goes, one says too little, one has no secret, two say that they are rank 0, or no rank."""
    strangers: list[socket.socket] = []
    numbers: queue.Queue[int] = queue.Queue()

    def share(mine: int) -> int:
        if not mine:
            return numbers.get(timeout=PATIENCE_S)
        secret, port = divmod(mine, 1 << 16)
        own = [number.to_bytes(4) + secret.to_bytes(12) for number in (0, 9)]
        for said in (None, b"", b"abc", (1).to_bytes(4) + bytes(12), *own):
            strangers.append(socket.create_connection(("127.0.0.1", port)))
            if said:
                strangers[-1].sendall(said)
            elif said is not None:
                strangers[-1].close()
        for _ in range(2):
            numbers.put(mine)
        return mine

    def body(rank: int) -> Any:
        end = out_of_band.meet(rank, 3, "127.0.0.1", share, lambda: None)
        try:
            return end.all_gather([rank]).ravel().tolist()
        finally:
            end.close()

    assert in_threads(3, body) == [[0, 1, 2]] * 3
    for stranger in strangers:
        stranger.close()
