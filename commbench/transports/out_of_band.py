"""A star of TCP connections through rank 0: votes and barriers beside a library whose messages cross the links.

A rank that waits here is in no call of the library, which may still have something to send that another rank needs to
get here. So nothing blocks for long: `meanwhile`, in which the library can go on, is called again and again.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Result = TypeVar("_Result")
_PORT_BITS, _SECRET_BITS = 16, 96
_RANK_BYTES, _SECRET_BYTES = 4, _SECRET_BITS // 8
_STRANGERS = 64  # that may wait before ranks
_PAUSE_S = 0.5e-3  # asleep, as other ranks may need the CPU; so long can what the library has to send be late


def meet(rank: int, size: int, host: str, share: Callable[[int], int], meanwhile: Callable[[], object]) -> Star:
    """Collective. `host` is an address of rank 0, where it listens at a free port; `share` gives its number to all.

    That number is the port with a secret: who connects without it is nobody. Raises `ConnectionError`.
    """
    if rank != 0:
        secret, port = divmod(share(0), 1 << _PORT_BITS)
        star = Star(size, {0: socket.create_connection((host, port))}, meanwhile)
        star.send(0, rank.to_bytes(_RANK_BYTES) + secret.to_bytes(_SECRET_BYTES))
        return star
    secret = secrets.randbits(_SECRET_BITS)
    with socket.create_server((host, 0), backlog=size + _STRANGERS) as server:
        share(secret << _PORT_BITS | server.getsockname()[1])
        return Star(size, _admit(server, size, secret.to_bytes(_SECRET_BYTES), meanwhile), meanwhile)


def _admit(
    server: socket.socket, size: int, secret: bytes, meanwhile: Callable[[], object]
) -> dict[int, socket.socket]:
    """Return the other ranks' connections, by rank. One that says nothing, or something else, keeps nobody waiting."""
    peers: dict[int, socket.socket] = {}
    heard: dict[socket.socket, bytes] = {}
    server.setblocking(False)
    try:
        while len(peers) < size - 1:
            ready, _, _ = select.select([server, *heard], (), (), _PAUSE_S)
            if not ready:
                meanwhile()
            if server in ready:
                ready.remove(server)
                with contextlib.suppress(OSError):  # gone again
                    end, _ = server.accept()
                    end.setblocking(False)
                    heard[end] = b""
            for end in ready:
                heard[end] += (said := _said(end, _RANK_BYTES + _SECRET_BYTES - len(heard[end])))
                if said and len(heard[end]) < _RANK_BYTES + _SECRET_BYTES:
                    continue
                told = heard.pop(end)
                rank = int.from_bytes(told[:_RANK_BYTES])
                if hmac.compare_digest(told[_RANK_BYTES:], secret) and 0 < rank < size and rank not in peers:
                    peers[rank] = end
                else:
                    end.close()
    finally:
        for end in heard:
            end.close()
    return dict(sorted(peers.items()))


def _said(end: socket.socket, most: int) -> bytes:
    """Return what has come; nothing where there will be no more."""
    try:
        return end.recv(most)
    except OSError:
        return b""


def _patiently(
    call: Callable[[], _Result],
    meanwhile: Callable[[], object],
    *,
    reads: Sequence[socket.socket] = (),
    writes: Sequence[socket.socket] = (),
) -> _Result:
    while True:
        try:
            return call()
        except BlockingIOError:
            meanwhile()
            select.select(reads, writes, (), _PAUSE_S)


class Star:
    """One end of it: rank 0 has a connection to each other rank, which have one to rank 0."""

    def __init__(self, size: int, peers: Mapping[int, socket.socket], meanwhile: Callable[[], object]) -> None:
        self._size = size
        self._peers = peers
        self._meanwhile = meanwhile
        for end in peers.values():
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Every rank's `values`, equally many: an array of ranks x values."""
        mine = np.asarray(values, dtype=np.float64).tobytes()
        if 0 in self._peers:
            self.send(0, mine)
            table = self.receive(0, self._size * len(mine))
        else:
            table = bytearray().join([mine, *(self.receive(peer, len(mine)) for peer in self._peers)])
            # One system call after the other: none hears much later than another.
            for peer in self._peers:
                self.send(peer, table)
        return np.frombuffer(table, dtype=np.float64).reshape(self._size, len(values))

    def barrier(self) -> None:
        self.all_gather((0.0,))

    def send(self, peer: int, data: bytes | bytearray) -> None:
        end, left = self._peers[peer], memoryview(data)
        while left:
            left = left[self._try(peer, lambda: end.send(left), writes=[end]) :]  # noqa: B023  (called at once)

    def receive(self, peer: int, nbytes: int) -> bytearray:
        end, data = self._peers[peer], bytearray(nbytes)
        left = memoryview(data)
        while left:
            got = self._try(peer, lambda: end.recv_into(left), reads=[end])  # noqa: B023  (called at once)
            if not got:
                raise ConnectionError(f"rank {peer} is gone")
            left = left[got:]
        return data

    def _try(self, peer: int, call: Callable[[], int], **ready: list[socket.socket]) -> int:
        try:
            return _patiently(call, self._meanwhile, **ready)
        except OSError as error:
            raise ConnectionError(f"rank {peer} is gone") from error

    def close(self) -> None:
        for end in self._peers.values():
            end.close()
