"""Copies between a GPU and the memory of its host, by its copy engines."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from commbench.transports.base import Array, Done, Work

_DONE = Done()


class Streams:
    """What copies are enqueued on. out, back: beside the current stream; they are the transport's."""

    def __init__(self, out: torch.cuda.Stream, back: torch.cuda.Stream) -> None:
        self._out, self._back = out, back

    def copy(self, out: Array, inp: Array, *, beside: bool) -> Work:
        """Copy on the current stream, or beside it."""
        if not beside:
            _enqueue(out, inp)
            return _DONE
        now = torch.cuda.current_stream()
        self._out.wait_stream(now)
        with torch.cuda.stream(self._out):
            _enqueue(out, inp)
        return _Joined(now, [self._out])

    def round_trip(self, out: Array, inp: Array, host: Array, parts: Sequence[slice], *, beside: bool) -> Work:
        """Copy to the host and back, part by part, on both streams."""
        now = torch.cuda.current_stream()
        for stream in (self._out, self._back):
            stream.wait_stream(now)
        for part in parts:
            with torch.cuda.stream(self._out):
                _enqueue(host[part], inp[part])
            self._back.wait_event(self._out.record_event())
            with torch.cuda.stream(self._back):
                _enqueue(out[part], host[part])
        work = _Joined(now, [self._out, self._back])
        if not beside:
            work.wait()
        return work


class _Joined:
    """Copies on other streams, of which a stream waits for the last."""

    def __init__(self, stream: torch.cuda.Stream, others: Sequence[torch.cuda.Stream]) -> None:
        self._stream, self._others = stream, others

    def wait(self) -> None:
        for other in self._others:
            self._stream.wait_stream(other)


def _enqueue(out: Array, inp: Array) -> None:
    assert isinstance(out, torch.Tensor) and isinstance(inp, torch.Tensor)
    out.copy_(inp, non_blocking=True)
