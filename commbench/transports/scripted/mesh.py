"""A mesh of byte pipes between the ranks of one machine, with no library behind it.

`thread_meshes` joins ranks that are threads of one process (unit tests); `SocketMesh` joins forked processes.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

_HEADER = struct.Struct("!Q")


class Mesh(Protocol):
    rank: int
    size: int

    def exchange(self, sends: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """Send one message to each peer in `sends`, receive one from each of `sources`; in order per pair."""
        ...


class Deadlock(RuntimeError):
    """No rank can go on: each waits for a message that nobody will send."""


class _Meeting:
    """What the threads of one mesh share: the messages on their way, who waits for whom, and who has left."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.arrived = [threading.Condition(self.lock) for _ in range(size)]  # something for this rank
        self.queues = {(src, dst): deque[bytes]() for src in range(size) for dst in range(size)}
        self.waiting: dict[int, int] = {}  # rank -> the rank that it waits for
        self.left: set[int] = set()

    def stuck(self) -> bool:
        """Return whether each rank has left, or waits for a message that is not there."""
        waiting = {rank for rank, source in self.waiting.items() if not self.queues[source, rank]}
        return len(waiting | self.left) == self.size

    def wake_all(self) -> None:
        for arrived in self.arrived:
            arrived.notify()


class ThreadMesh:
    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank = rank
        self.size = meeting.size
        self._meeting = meeting

    def exchange(self, sends: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        meeting = self._meeting
        with meeting.lock:
            for peer, payload in sends.items():
                meeting.queues[self.rank, peer].append(payload)
                if meeting.waiting.get(peer) == self.rank:
                    meeting.arrived[peer].notify()
            return {peer: self._receive(peer) for peer in sources}

    def _receive(self, peer: int) -> bytes:
        """Return the next message of a peer. Raises `Deadlock` where none will come."""
        meeting, queue = self._meeting, self._meeting.queues[peer, self.rank]
        meeting.waiting[self.rank] = peer
        while not queue:
            if meeting.stuck():
                meeting.wake_all()
                raise Deadlock(f"waits for a message of rank {peer} that never comes")
            if not meeting.arrived[self.rank].wait(timeout=60):
                raise TimeoutError(f"no message of rank {peer} in a minute")
        del meeting.waiting[self.rank]
        return queue.popleft()

    def leave(self) -> None:
        """Send nothing more: who waits for this rank alone, waits in vain."""
        with self._meeting.lock:
            self._meeting.left.add(self.rank)
            self._meeting.wake_all()


def thread_meshes(size: int) -> list[ThreadMesh]:
    """One end per rank."""
    meeting = _Meeting(size)
    return [ThreadMesh(rank, meeting) for rank in range(size)]


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
