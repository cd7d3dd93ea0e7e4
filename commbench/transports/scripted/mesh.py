"""A mesh of byte pipes between the ranks of one machine, with no library behind it.

`thread_meshes` joins ranks that are threads of one process (unit tests); `SocketMesh` joins forked processes.
"""

from __future__ import annotations

import queue
import selectors
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Protocol

_HEADER = struct.Struct("!Q")


class Mesh(Protocol):
    rank: int
    size: int

    def exchange(self, sends: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """Send one message to each peer in `sends`, receive one from each of `sources`; in order per pair."""
        ...


class ThreadMesh:
    def __init__(self, rank: int, queues: list[list[queue.SimpleQueue[bytes]]]) -> None:
        self.rank = rank
        self.size = len(queues)
        self._queues = queues

    def exchange(self, sends: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        for peer, payload in sends.items():
            self._queues[self.rank][peer].put(payload)
        return {peer: self._queues[peer][self.rank].get(timeout=60) for peer in sources}


def thread_meshes(size: int) -> list[ThreadMesh]:
    """One end per rank."""
    queues: list[list[queue.SimpleQueue[bytes]]] = [[queue.SimpleQueue() for _ in range(size)] for _ in range(size)]
    return [ThreadMesh(rank, queues) for rank in range(size)]


class SocketPairs:
    """Made before the fork: a socket pair for each pair of ranks. Each rank then takes its own ends."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pairs = {(a, b): socket.socketpair() for a in range(size) for b in range(a + 1, size)}

    def take(self, rank: int) -> SocketMesh:
        """Rank `rank`'s ends; all others are closed in this process, so that a dead peer is seen as such."""
        ends: dict[int, socket.socket] = {}
        for (a, b), (end_a, end_b) in self._pairs.items():
            if a == rank:
                ends[b] = end_a
                end_b.close()
            elif b == rank:
                ends[a] = end_b
                end_a.close()
            else:
                end_a.close()
                end_b.close()
        return SocketMesh(rank, self.size, ends)


class SocketMesh:
    def __init__(self, rank: int, size: int, ends: dict[int, socket.socket]) -> None:
        self.rank = rank
        self.size = size
        self._ends = ends
        for end in ends.values():
            end.setblocking(False)

    def exchange(self, sends: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        # All directions progress together: a blocking send of a large message to a peer that is sending too would hang.
        outgoing = {peer: memoryview(_HEADER.pack(len(data)) + data) for peer, data in sends.items()}
        incoming = {peer: bytearray() for peer in sources}
        wanted = dict.fromkeys(sources, _HEADER.size)
        done: dict[int, bytes] = {}
        with selectors.DefaultSelector() as selector:
            for peer in outgoing.keys() | incoming.keys():
                selector.register(self._ends[peer], self._events(peer, outgoing, incoming), peer)
            while selector.get_map():
                for key, events in selector.select():
                    peer = key.data
                    if events & selectors.EVENT_WRITE:
                        outgoing[peer] = outgoing[peer][self._ends[peer].send(outgoing[peer]) :]
                        if not outgoing[peer]:
                            del outgoing[peer]
                    if events & selectors.EVENT_READ and peer in incoming:
                        buffer = incoming[peer]
                        # Never past this message: the peer may have begun its next one.
                        piece = self._ends[peer].recv(min(wanted[peer] - len(buffer), 1 << 20))
                        if not piece:
                            raise ConnectionError(f"rank {peer} is gone")
                        buffer += piece
                        if len(buffer) == _HEADER.size == wanted[peer]:
                            wanted[peer] += _HEADER.unpack(buffer)[0]
                        if len(buffer) == wanted[peer] and len(buffer) >= _HEADER.size:
                            done[peer] = bytes(buffer[_HEADER.size :])
                            del incoming[peer]
                    if interest := self._events(peer, outgoing, incoming):
                        selector.modify(self._ends[peer], interest, peer)
                    else:
                        selector.unregister(self._ends[peer])
        return done

    @staticmethod
    def _events(peer: int, outgoing: Mapping[int, object], incoming: Mapping[int, object]) -> int:
        return (selectors.EVENT_WRITE if peer in outgoing else 0) | (selectors.EVENT_READ if peer in incoming else 0)
