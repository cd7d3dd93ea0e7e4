"""Exchanges of blocks that may travel as a payload: quantised before they are sent, dequantised when they are there.

Each message is one row of the payload. An algorithm moves what is on the wire, which is an exchange of bytes like any
other: `on_wire` says which. What must come out is what the quantiser makes of what went in, bit by bit.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from commbench import payloads
from commbench.collectives.base import Argument, Blocks, Moves
from commbench.data import CHUNK_BYTES, Bytes, Pattern, Words
from commbench.payloads import Payload, arrays
from commbench.spec import DTYPES, Arguments, Spec

PAYLOAD = Argument(None, "how elements travel: as they are (none), or quantised", payloads.CHOICES)
_BLOCK = 128  # values that share a scale, at the most


def payload_of(spec: Spec) -> Payload | None:
    """Return how the elements travel; None where that is as they are."""
    payload = payloads.get(str(spec.arguments.get("payload", payloads.NONE)))
    return payload if payload is not None and payload.changes(spec.dtype) else None


def kept(arguments: Arguments) -> Arguments:
    """Return the payload among arguments that were asked for, where it has an effect."""
    asked = arguments.get("payload", payloads.NONE)
    return {} if asked == payloads.NONE else {"payload": asked}


def magnitudes_of(spec: Spec, *, arrived: bool) -> Words | None:
    """Return the magnitudes of a piece of elements that are sent, or of what arrives of them.

    None where elements travel as they are.
    """
    if (payload := payload_of(spec)) is None:
        return None
    return _arrived(spec.dtype, payload.name) if arrived else _numbers(spec.dtype)


class PayloadMoves(Moves):
    """A collective whose messages may each travel as a row of a payload."""

    def unsupported_payload(self, spec: Spec) -> str:
        payload = payloads.get(str(spec.arguments.get("payload", payloads.NONE)))
        return payload.unsupported(spec.dtype) if payload else ""

    def wire_bytes(self, spec: Spec, nbytes: int) -> int:
        """Return what `nbytes` of elements are on the wire, as one message."""
        payload = payload_of(spec)
        return nbytes if payload is None else payload.row_bytes(nbytes // spec.itemsize) if nbytes else 0

    def on_wire(self, spec: Spec) -> Spec:
        return self.travelling(spec)

    def travelling(self, spec: Spec) -> Spec:
        """Return the exchange of what is on the wire, which is that of bytes; or of elements as they are."""
        if payload_of(spec) is None:
            return spec
        return replace(self.wire_spec(spec), dtype="uint8")

    def wire_spec(self, spec: Spec) -> Spec:
        """Return the exchange of what is on the wire, but for its dtype."""
        raise NotImplementedError

    def sent(self, spec: Spec, rank: int) -> list[int]:
        """Return bytes of elements in each message that `rank` sends; what else its input has travels as it is."""
        raise NotImplementedError

    def received(self, spec: Spec, rank: int) -> list[int]:
        """Return bytes of elements in each message that `rank` gets; what else its output has comes as it is."""
        raise NotImplementedError


class PayloadBlocks(PayloadMoves, Blocks):
    """A collective that moves blocks, of which each may travel as a row of a payload."""

    def unsupported(self, spec: Spec) -> str:
        return super().unsupported(spec) or self.unsupported_payload(spec)

    def input_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        return _signed(super().input_pattern(spec, rank, seed=seed), magnitudes_of(spec, arrived=False))

    def expected_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        return _signed(super().expected_pattern(spec, rank, seed=seed), magnitudes_of(spec, arrived=True))


def _signed(pattern: Pattern, magnitudes: Words | None) -> Pattern:
    """Return a pattern of numbers, each piece with the same magnitudes; None: as it is."""
    if magnitudes is None:
        return pattern
    return Pattern.of_runs([run._replace(magnitudes=magnitudes) for run in pattern.runs], pattern.itemsize)


@functools.lru_cache(maxsize=8)
def _arrived(dtype: str, payload: str) -> Words:
    """Return what arrives of the numbers of `_numbers`, or of the first of them."""
    rows = _numbers(dtype).view(np.uint8).reshape(1, -1)
    return arrays.round_trip(rows, dtype, payloads.TABLE[payload]).reshape(-1).view(np.uint64)


@functools.lru_cache(maxsize=4)
def _numbers(dtype: str) -> Words:
    """Return the numbers of a piece, as words: of many magnitudes, none of which any payload makes 0.

    The first of each block is its largest, so that the beginning of a block has the same scale as the whole.
    """
    count = CHUNK_BYTES // DTYPES[dtype]
    draw = np.random.default_rng(0)
    # Blocks of 128 begin with their largest, and so do their four parts of 32.
    of_block = np.exp2(draw.uniform(-6, 6, (count // _BLOCK, 1, 1)))
    of_part = of_block * draw.uniform(0.5, 1, (count // _BLOCK, 4, 1))
    of_part[:, :1] = of_block
    magnitudes = of_part * draw.uniform(1 / 16, 1, (count // _BLOCK, 4, _BLOCK // 4))
    magnitudes[:, :, :1] = of_part
    return _encoded(magnitudes.reshape(-1).astype(np.float32), dtype).view(np.uint64)


def _encoded(numbers: npt.NDArray[np.float32], dtype: str) -> Bytes:
    """Return fp32 numbers as bytes of `dtype`; what bf16 has no bits for is cut off."""
    if dtype == "bf16":
        return np.ascontiguousarray(numbers.view(np.uint16)[1::2]).view(np.uint8)
    return numbers.astype(np.float16 if dtype == "fp16" else np.float32).view(np.uint8)
