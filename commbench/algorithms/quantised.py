"""Calls of an algorithm whose elements travel as a payload: quantised, exchanged as bytes, dequantised."""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from commbench import collectives
from commbench.algorithms.base import Algorithm, Bound, BoundBase
from commbench.collectives.payload import PayloadMoves, payload_of
from commbench.payloads import Payload, arrays
from commbench.spec import DTYPES, Spec
from commbench.transports.base import Array, Done, Ready, Work


def scratch_bytes(algorithm: Algorithm, spec: Spec) -> int:
    """Return memory of a rank beside input and output: the algorithm's own, and what holds the bytes on the wire."""
    collective = collectives.get(spec.collective)
    wire = collective.on_wire(spec)
    held = 0
    if wire is not spec:
        held = max(
            collective.input_bytes(wire, rank) + collective.output_bytes(wire, rank) for rank in range(spec.ranks)
        )
    return algorithm.scratch_bytes(wire) + held


class QuantisedBound(BoundBase):
    """A bound exchange of bytes, between the quantiser and its inverse. A call is done when it returns."""

    def __init__(self, bound: Bound, spec: Spec, rank: int, wire: tuple[Array, Array]) -> None:
        """bound: of what travels. spec: of the elements. wire: where the bytes arrive, and from where they are sent."""
        collective, payload = collectives.get(spec.collective), payload_of(spec)
        assert isinstance(collective, PayloadMoves) and payload is not None
        self.capturable = bound.capturable
        self._bound, self._arrived, self._going = bound, *wire
        (self._exchange,) = bound.bind([wire])
        self._sent = _messages(collective.sent(spec, rank), payload, spec)
        self._received = _messages(collective.received(spec, rank), payload, spec)
        on_wire = collective.on_wire(spec)
        # What a buffer has behind its messages, here and on the wire.
        self._beside_sent, self._beside_received = (
            (slice(sum(sizes), whole(spec, rank)), slice(_wire_end(messages), whole(on_wire, rank)))
            for sizes, messages, whole in (
                (collective.sent(spec, rank), self._sent, collective.input_bytes),
                (collective.received(spec, rank), self._received, collective.output_bytes),
            )
        )
        self._dtype, self._payload = spec.dtype, payload

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        return [functools.partial(self._call, *self._steps(out, inp)) for out, inp in pairs]

    def start(self, out: Array, inp: Array) -> Work:
        self._call(*self._steps(out, inp))
        return Done()

    def close(self) -> None:
        del self._exchange, self._arrived, self._going
        self._bound.close()

    def _steps(self, out: Array, inp: Array) -> tuple[list[_Step], list[_Step]]:
        given = self._dtype, self._payload
        pack = [packing(message.of(inp), message.on_wire(self._going), *given) for message in self._sent]
        unpack = [unpacking(message.of(out), message.on_wire(self._arrived), *given) for message in self._received]
        here, there = self._beside_sent
        pack += _copied(self._going[there], inp[here])
        here, there = self._beside_received
        return pack, unpack + _copied(out[here], self._arrived[there])

    def _call(self, pack: list[_Step], unpack: list[_Step]) -> None:
        for step in pack:
            step()
        if (work := self._exchange()) is not None:
            work.wait()
        for step in unpack:
            step()


_Step = Callable[[], Any]


class _Messages(NamedTuple):
    """Messages of equal size that follow each other: of elements, and on the wire, where each is a row."""

    start: int
    row_bytes: int
    wire_start: int
    wire_row_bytes: int
    rows: int

    def of(self, buffer: Array) -> Any:
        """Return the elements in `buffer`, a row for each message."""
        return buffer[self.start : self.start + self.rows * self.row_bytes].reshape(self.rows, self.row_bytes)

    def on_wire(self, buffer: Array) -> Any:
        """Return the rows on the wire in `buffer`."""
        stop = self.wire_start + self.rows * self.wire_row_bytes
        return buffer[self.wire_start : stop].reshape(self.rows, self.wire_row_bytes)


def _messages(sizes: Sequence[int], payload: Payload, spec: Spec) -> list[_Messages]:
    found, at, wire_at = [], 0, 0
    for nbytes, alike in itertools.groupby(sizes):
        rows = len(list(alike))
        wire_bytes = payload.row_bytes(nbytes // spec.itemsize)
        if nbytes:
            found.append(_Messages(at, nbytes, wire_at, wire_bytes, rows))
            at, wire_at = at + rows * nbytes, wire_at + rows * wire_bytes
    return found


def _wire_end(messages: Sequence[_Messages]) -> int:
    return messages[-1].wire_start + messages[-1].rows * messages[-1].wire_row_bytes if messages else 0


def _copied(to: Any, source: Any) -> list[_Step]:
    """Return what copies bytes that are no elements, if there are any."""
    return [functools.partial(to.__setitem__, ..., source)] if len(to) else []


def packing(elements: Any, wire: Any, dtype: str, payload: Payload) -> _Step:
    """Return what quantises rows of elements to the wire: numpy's arrays or torch's tensors of bytes."""
    if isinstance(elements, np.ndarray):
        return functools.partial(arrays.quantise, elements, dtype, payload, wire)
    tensors = _tensors()
    return functools.partial(tensors.quantise, elements.view(tensors.KINDS[dtype]), payload, wire)


def unpacking(elements: Any, wire: Any, dtype: str, payload: Payload) -> _Step:
    """Return what makes rows of elements of what is on the wire."""
    if isinstance(elements, np.ndarray):
        values = elements.shape[1] // DTYPES[dtype]
        return functools.partial(arrays.dequantise, wire, values, dtype, payload, elements)
    tensors = _tensors()
    x = elements.view(tensors.KINDS[dtype])
    return functools.partial(tensors.dequantise, wire, x.shape[1], x.dtype, payload, x)


def _tensors() -> Any:
    """Return the payloads of tensors: whoever has some has torch, and not everybody has."""
    return importlib.import_module("commbench.payloads.tensors")
